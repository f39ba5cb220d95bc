package network

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/strake-project/strake/internal/userns"
	"golang.org/x/sys/unix"
)

// The tests that need helpers run the test binary in a machine of its own
// making, see machine, as root and as an ordinary user.
const (
	stage   = "STRAKE_NETWORK_STAGE"
	outside = "198.51.100.1" // an address beyond the machine
	inner   = "198.51.100.2" // the machine's own
	stub    = "127.0.0.53"   // its resolver
)

func TestMain(m *testing.M) {
	var err error
	switch what := os.Getenv(stage); {
	case what == "":
		os.Exit(m.Run())
	case what == "machine":
		err = machine(os.Args[1:])
	case what == "start":
		if _, err = Start(context.Background(), "pasta", os.Args[1]); err == nil {
			fmt.Println("started")
			select {} // until it is killed
		}
	case userns.Needed():
		var code int
		if code, err = userns.Enter(os.Args); err == nil {
			os.Exit(code)
		}
	case what == "connect":
		userns.Entered()
		err = connect(os.Args[1], os.Args[2], os.Args[3])
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A network of each helper, for root as for an ordinary user, leads to the
// world and to the machine's resolver, even one on its loopback; it does not
// lead to the machine's loopback itself. Closed, it leaves nothing behind.
func TestConnect(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make a machine")
	}
	for _, p := range []string{"pasta", "slirp4netns", "ip", "unshare"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip("needs passt, slirp4netns, iproute2 and util-linux: ", err)
		}
	}
	ordinary, err := user.Lookup("strake-test")
	if err != nil {
		t.Skipf("test.sh makes this user: %v", err)
	}
	for _, who := range []*user.User{{Uid: "0", Gid: "0", Username: "root"}, ordinary} {
		for _, helper := range []string{"pasta", "slirp4netns"} {
			t.Run(helper+" of "+who.Username, func(t *testing.T) {
				t.Parallel()
				home, program := home(t, who)
				cmd := exec.Command("unshare", "--mount", "--net", "--propagation", "private", program, who.Uid, who.Gid, helper, home)
				cmd.Env = append(os.Environ(), stage+"=machine")
				if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
					t.Errorf("%v\n%s", err, out)
				}
			})
		}
	}
}

// A helper that fails says why itself; one that is never ready is ended when
// its caller gives up; and each ends with the process that started it, however
// that ends.
func TestHelperEnds(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make network namespaces")
	}
	if tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		t.Skip("needs a tun device: ", err)
	} else {
		tun.Close()
	}
	// The helper opens a pipe that ends with it, and is ready where a file says so.
	dir := t.TempDir()
	lives := filepath.Join(dir, "lives")
	script := "#!/bin/sh\ncd " + dir + `
[ -e lives ] || { echo 'syslog says' >&2; echo 'no such luck' >&2; exit 1; }
while [ "$1" != --pid ]; do shift; done
exec 3>lives
[ ! -e ready ] || echo $$ >"$2"
exec sleep 1000
`
	if err := os.WriteFile(filepath.Join(dir, "pasta"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	u, err := Start(t.Context(), "pasta", t.TempDir())
	if u != nil || err == nil || err.Error() != "start pasta: no such luck" {
		t.Errorf("a helper that fails: %v, %v", u, err)
	}

	if err := unix.Mkfifo(lives, 0o600); err != nil {
		t.Fatal(err)
	}
	ended := func(when string, then func() error) {
		t.Helper()
		r, err := os.Open(lives) // which waits for the helper
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if err := then(); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
			t.Errorf("%s: %q, %v", when, rest, err)
		}
	}
	ctx, giveUp := context.WithCancel(t.Context())
	result := make(chan error)
	go func() {
		_, err := Start(ctx, "pasta", t.TempDir())
		result <- err
	}()
	ended("given up", func() error {
		giveUp()
		if err := <-result; !errors.Is(err, context.Canceled) {
			return fmt.Errorf("not canceled: %w", err)
		}
		return nil
	})

	if err := os.WriteFile(filepath.Join(dir, "ready"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", self, t.TempDir())
	cmd.Env = append(os.Environ(), stage+"=start")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended("killed", func() error {
		line, err := bufio.NewReader(out).ReadString('\n')
		if line != "started\n" {
			err = fmt.Errorf("%q, %w", line, err)
		}
		if e := cmd.Process.Kill(); err == nil {
			err = e
		}
		_ = cmd.Wait() // it was killed
		return err
	})
}

// home makes a directory of the user's with the test binary in it.
func home(t *testing.T, who *user.User) (dir, program string) {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "strake-network-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	uid, err1 := strconv.Atoi(who.Uid)
	gid, err2 := strconv.Atoi(who.Gid)
	self, err3 := os.Executable()
	body, err4 := os.ReadFile(self)
	program = filepath.Join(dir, "program")
	if err := errors.Join(err1, err2, err3, err4, os.WriteFile(program, body, 0o755), os.Chown(dir, uid, gid)); err != nil {
		t.Fatal(err)
	}
	return dir, program
}

// machine makes of the new mount and network namespace it runs in a machine
// with a tun device open to all, a resolver on its loopback, and a way to the
// world; there the user tries the helper.
func machine(args []string) error {
	uid, err := strconv.ParseUint(args[0], 10, 32)
	if err != nil {
		return err
	}
	gid, err := strconv.ParseUint(args[1], 10, 32)
	if err != nil {
		return err
	}
	if err := devices(); err != nil {
		return err
	}
	if err := LoopbackUp(); err != nil {
		return err
	}
	if err := echo(stub); err != nil {
		return err
	}
	inLoopback, err := greet("127.0.0.1", "loopback")
	if err != nil {
		return err
	}
	outPort, err := world()
	if err != nil {
		return err
	}
	// It cannot be in vain that the loopback is not reached.
	for addr, want := range map[string]string{"127.0.0.1:" + inLoopback: "loopback", outside + ":" + outPort: "world"} {
		if got, err := ask(addr); got != want {
			return fmt.Errorf("%s from the machine: %q, %v", addr, got, err)
		}
	}
	cmd := exec.Command("/proc/self/exe", args[2], inLoopback, outPort)
	cmd.Dir = args[3]
	cmd.Env = append(os.Environ(), stage+"=connect")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// devices puts a tun device and a resolv.conf over the machine's.
func devices() error {
	const dir = "/mnt"
	if err := unix.Mount("strake-test", dir, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	conf := dir + "/resolv.conf"
	if err := os.WriteFile(conf, []byte("nameserver "+stub+"\n"), 0o644); err != nil {
		return err
	}
	real, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		return err
	}
	if err := unix.Mount(conf, real, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", real, err)
	}
	tun := dir + "/tun"
	if err := unix.Mknod(tun, unix.S_IFCHR|0o600, int(unix.Mkdev(10, 200))); err != nil {
		return fmt.Errorf("mknod: %w", err)
	}
	if err := os.Chmod(tun, 0o666); err != nil {
		return err
	}
	if err := unix.Mount(tun, "/dev/net/tun", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount /dev/net/tun: %w", err)
	}
	return nil
}

// world makes a network beyond the machine's and a service there, and gives
// its port.
func world() (string, error) {
	dir, err := os.MkdirTemp("/mnt", "")
	if err != nil {
		return "", err
	}
	w := &User{file: filepath.Join(dir, "netns")}
	if err := w.makeNamespace(); err != nil {
		return "", err
	}
	for _, args := range []string{
		"link add v0 type veth peer name v1",
		"link set v1 netns " + w.file,
		"addr add " + inner + "/24 dev v0",
		"link set v0 up",
	} {
		if err := ip(args); err != nil {
			return "", err
		}
	}
	var port string
	err = within(w, func() error {
		for _, args := range []string{"addr add " + outside + "/24 dev v1", "link set v1 up"} {
			if err := ip(args); err != nil {
				return err
			}
		}
		port, err = greet(outside, "world")
		return err
	})
	if err != nil {
		return "", err
	}
	return port, ip("route add default via " + outside)
}

func ip(args string) error {
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", args, err, out)
	}
	return nil
}

// within runs do on a thread in u's network.
func within(u *User, do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with its goroutine
		if err := u.Join(); err != nil {
			done <- err
			return
		}
		done <- do()
	}()
	return <-done
}

// greet says word to whoever connects to the port of host that it gives.
func greet(host, word string) (string, error) {
	l, err := net.Listen("tcp4", host+":0")
	if err != nil {
		return "", err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(word)) // who asked sees that it is missing
			c.Close()
		}
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// ask is what greets at addr.
func ask(addr string) (string, error) {
	c, err := net.DialTimeout("tcp4", addr, 3*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return "", err
	}
	var b bytes.Buffer
	_, err = b.ReadFrom(c)
	return b.String(), err
}

// echo is a resolver at host that answers with the question.
func echo(host string) error {
	c, err := net.ListenPacket("udp4", host+":53")
	if err != nil {
		return err
	}
	go func() {
		b := make([]byte, 1024)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(b[:n], from) // who asked sees that it is missing
		}
	}()
	return nil
}

// resolve asks the resolver at host, as often as a packet may be lost.
func resolve(host string) error {
	c, err := net.Dial("udp4", host+":53")
	if err != nil {
		return err
	}
	defer c.Close()
	// A question that a forwarder may want to look into.
	question := []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x00\x00\x01\x00\x01")
	answer := make([]byte, 1024)
	for range 10 {
		if _, err = c.Write(question); err != nil {
			return err
		}
		if err = c.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return err
		}
		var n int
		if n, err = c.Read(answer); err == nil {
			if !bytes.Equal(answer[:n], question) {
				return fmt.Errorf("answer %q", answer[:n])
			}
			return nil
		}
	}
	return err
}

// connect tries helper in the machine.
func connect(helper, inLoopback, outPort string) error {
	dir, err := os.MkdirTemp(".", "")
	if err != nil {
		return err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	u, err := Start(context.Background(), helper, dir)
	if err != nil {
		return err
	}
	if children, err := children(); err != nil || len(children) != 1 {
		return fmt.Errorf("children: %v, %v", children, err)
	}
	err = within(u, func() error {
		links, err := net.Interfaces()
		if err != nil {
			return err
		}
		var up []string
		for _, l := range links {
			if l.Flags&net.FlagUp != 0 && l.Flags&net.FlagLoopback == 0 {
				up = append(up, l.Name)
			}
		}
		if len(up) != 1 {
			return fmt.Errorf("devices %v, not one", up)
		}
		if got, err := ask(outside + ":" + outPort); got != "world" {
			return fmt.Errorf("the world answers %q, %w", got, err)
		}
		server, ok := strings.CutPrefix(strings.TrimSpace(string(u.ResolvConf)), "nameserver ")
		if !ok || server == stub {
			return fmt.Errorf("resolv.conf: %q", u.ResolvConf)
		}
		if err := resolve(server); err != nil {
			return fmt.Errorf("the resolver at %s: %w", server, err)
		}
		return nil
	})
	err = errors.Join(err, closed(u, inLoopback))
	u.Close()
	if err != nil {
		return err
	}
	if children, err := children(); err != nil || len(children) != 0 {
		return fmt.Errorf("children after the end: %v, %v", children, err)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(mounts, []byte(dir)) {
		return fmt.Errorf("mounts after the end, %v:\n%s", err, mounts)
	}
	return os.RemoveAll(dir)
}

// closed tells which addresses in u lead to the port of the machine's loopback.
// All are asked at once: some do not even refuse.
func closed(u *User, port string) error {
	hosts := []string{"127.0.0.1", inner, "10.0.2.2", "10.0.2.3", dnsForward}
	open := make(chan error)
	for _, host := range hosts {
		go func() {
			open <- within(u, func() error {
				if got, _ := ask(host + ":" + port); got != "" {
					return fmt.Errorf("%s leads to the machine's %s", host, got)
				}
				return nil
			})
		}()
	}
	var err error
	for range hosts {
		err = errors.Join(err, <-open)
	}
	return err
}

// children are the processes that this one started.
func children() ([]string, error) {
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(tasks) == 0 {
		return nil, fmt.Errorf("no threads, %w", err)
	}
	var all []string
	for _, task := range tasks {
		data, err := os.ReadFile(task)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a thread that ended
			return nil, err
		}
		all = append(all, strings.Fields(string(data))...)
	}
	slices.Sort(all)
	return all, nil
}
