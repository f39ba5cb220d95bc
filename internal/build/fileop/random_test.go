package fileop_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/build/fileop"
)

var names = []string{"a", "b", "c", "d.txt", "e.go", "z z"}

// plant fills dir with something random, all times old.
func plant(t *testing.T, r *rand.Rand, dir string, depth int) {
	t.Helper()
	var files []string
	var fill func(dir string, depth int)
	fill = func(dir string, depth int) {
		for _, name := range names {
			p := filepath.Join(dir, name)
			var err error
			switch k := r.Intn(14); {
			case k < 4 && depth > 0:
				if err = os.Mkdir(p, 0o755); err == nil {
					fill(p, depth-1)
					err = os.Chmod(p, []os.FileMode{0o755, 0o700, 0o755 | os.ModeSticky, 0o775 | os.ModeSetgid}[r.Intn(4)])
				}
			case k < 7:
				err = os.WriteFile(p, fmt.Appendf(nil, "%s%d", name, r.Intn(100))[:r.Intn(4)], 0o644)
				files = append(files, p)
			case k == 7:
				target := []string{"a", "b", "../a", "/a", "/b/c", "nowhere", "../../../c", "/", ".", name}[r.Intn(10)]
				err = os.Symlink(target, p)
			case k == 8 && len(files) > 0:
				err = os.Link(files[r.Intn(len(files))], p)
			case k == 9 && r.Intn(3) == 0:
				err = unix.Mkfifo(p, 0o640)
			case k == 10 && r.Intn(3) == 0:
				err = unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3)))
			default:
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if r.Intn(3) == 0 {
				os.Lchown(p, r.Intn(3)*500, r.Intn(3)*500)
			}
			if fi, _ := os.Lstat(p); fi.Mode().IsRegular() {
				os.Chmod(p, []os.FileMode{0o644, 0o755, 0o755 | os.ModeSetuid, 0o600}[r.Intn(4)])
			}
			if fi, _ := os.Lstat(p); r.Intn(5) == 0 && (fi.IsDir() || fi.Mode().IsRegular()) {
				unix.Lsetxattr(p, "user.x", []byte(name), 0)
			}
		}
	}
	fill(dir, depth)
	age(t, dir)
}

// age gives all in dir an old time, each its own.
func age(t *testing.T, dir string) {
	t.Helper()
	n := 0
	var all []string
	filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		all = append(all, p)
		return err
	})
	for i := len(all) - 1; i >= 0; i-- {
		n++
		ts, _ := unix.TimeToTimespec(old.Add(time.Duration(n) * time.Minute))
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, all[i], []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatal(err)
		}
	}
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.Intn(len(of))] }

func randomOwner(r *rand.Rand) *pb.ChownOpt {
	if r.Intn(3) > 0 {
		return nil
	}
	id := func(n uint32) *pb.UserOpt { return &pb.UserOpt{User: &pb.UserOpt_ByID{ByID: n}} }
	return &pb.ChownOpt{User: id(uint32(r.Intn(3) * 1000)), Group: id(uint32(r.Intn(3) * 1000))}
}

func randomTime(r *rand.Rand) int64 {
	return pick(r, int64(-1), -1, -1, old.Add(-time.Hour).UnixNano())
}

func randomPath(r *rand.Rand) string {
	p := "/"
	for range r.Intn(4) {
		p = path.Join(p, pick(r, "a", "b", "c", "d.txt", "new"))
	}
	return p + pick(r, "", "", "", "/", "/.")
}

func randomCopy(r *rand.Rand) *pb.FileActionCopy {
	a := &pb.FileActionCopy{
		Src: randomPath(r), Dest: randomPath(r), Owner: randomOwner(r), Mode: -1, Timestamp: randomTime(r),
		FollowSymlink: r.Intn(2) == 0, DirCopyContents: r.Intn(2) == 0, CreateDestPath: r.Intn(4) > 0,
		AllowWildcard: r.Intn(2) == 0, AllowEmptyWildcard: r.Intn(2) == 0,
		AlwaysReplaceExistingDestPaths: r.Intn(4) == 0,
	}
	if a.AllowWildcard {
		a.Src = pick(r, a.Src, a.Src, "/*", "/a/*", "/[ab]*", "/*/b", "/*/*.txt", "/c/*/a", "/nosuch*", "/?", "/[")
	}
	switch r.Intn(6) {
	case 0:
		a.Mode = pick(r, int32(0o644), 0o755, 0o4711, 0o600)
	case 1:
		a.ModeStr = pick(r, "u=rw,go=r", "a+X", "go-rwx", "u=rwX,go=rX", "755", "g=u", "+s", "+t")
	}
	some := []string{"a", "*.txt", "**/b", "a/*", "b/**", "!a/b", "c/a", "**", "!**/*.go", "*/c", "!c"}
	if r.Intn(4) == 0 {
		for range 1 + r.Intn(2) {
			a.IncludePatterns = append(a.IncludePatterns, pick(r, some...))
		}
	}
	if r.Intn(4) == 0 {
		for range 1 + r.Intn(3) {
			a.ExcludePatterns = append(a.ExcludePatterns, pick(r, some...))
		}
	}
	return a
}

func randomAction(r *rand.Rand) *pb.FileAction {
	switch r.Intn(8) {
	case 0:
		return &pb.FileAction{Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{
			Path: randomPath(r), Mode: pick(r, int32(0o755), 0o700, 0o1777), MakeParents: r.Intn(2) == 0,
			Owner: randomOwner(r), Timestamp: randomTime(r)}}}
	case 1:
		return &pb.FileAction{Action: &pb.FileAction_Mkfile{Mkfile: &pb.FileActionMkFile{
			Path: path.Join(randomPath(r), "a"), Mode: pick(r, int32(0o644), 0o4755), Data: []byte("new"),
			Owner: randomOwner(r), Timestamp: randomTime(r)}}}
	case 2:
		return &pb.FileAction{Action: &pb.FileAction_Symlink{Symlink: &pb.FileActionSymlink{
			Oldpath: pick(r, "a", "/b", "../c"), Newpath: randomPath(r), Owner: randomOwner(r), Timestamp: randomTime(r)}}}
	case 3:
		return &pb.FileAction{Action: &pb.FileAction_Rm{Rm: &pb.FileActionRm{
			Path: pick(r, randomPath(r), "/*", "/a/*", "/b/?"), AllowNotFound: r.Intn(2) == 0, AllowWildcard: r.Intn(2) == 0}}}
	}
	return &pb.FileAction{Action: &pb.FileAction_Copy{Copy: randomCopy(r)}}
}

// Random actions on random trees give what BuildKit's code gives on real
// directories, as the Draft shows it and as overlayfs shows its layer.
func TestLikeBuildKit(t *testing.T) {
	needRoot(t)
	rounds := 150
	if testing.Short() {
		rounds = 30
	}
	done := 0
	for seed := range rounds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewSource(int64(seed)))
			src, base := t.TempDir(), t.TempDir()
			plant(t, r, src, 2)
			plant(t, r, base, 2)
			if r.Intn(3) == 0 {
				plantArchive(t, r, src)
			}
			var actions []*pb.FileAction
			for range 1 + r.Intn(3) {
				a := randomAction(r)
				if c := a.GetCopy(); c != nil {
					if all, _ := filepath.Glob(src + "/*"); r.Intn(3) > 0 && len(all) > 0 {
						deep, _ := filepath.Glob(src + "/*/*")
						all = append(all, deep...)
						c.Src = "/" + relTo(src, pick(r, all...)) + pick(r, "", "", "/")
					}
					c.AttemptUnpackDockerCompatibility = r.Intn(2) == 0
				}
				actions = append(actions, a)
			}
			if compare(t, src, base, actions) {
				done++
			}
		})
	}
	if done < rounds/6 {
		t.Errorf("only %d of %d rounds came to a result", done, rounds)
	}
}

// compare runs actions here and there and tells whether they succeeded.
func compare(t *testing.T, src, base string, actions []*pb.FileAction) bool {
	t.Helper()
	began := time.Now().Add(-time.Second)
	real := filepath.Join(t.TempDir(), "real")
	if out, err := exec.Command("cp", "-a", base, real).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	d := fileop.New(onDisk(t, base))
	defer d.Close()
	for _, a := range actions {
		want := reference(t.Context(), real, a, src)
		got := d.Apply(t.Context(), a, onDisk(t, src), nil, now)
		if want != nil && got == nil && a.GetCopy().GetAttemptUnpackDockerCompatibility() {
			return false // go-archive does not make directories behind dangling symlinks
		}
		if (want == nil) != (got == nil) {
			t.Fatalf("%v\nBuildKit: %v\nstrake:   %v", a, want, got)
		}
		if want != nil {
			return false
		}
	}
	// What was there keeps its old time; what is new is NOW in both.
	wantList := show(t, onDisk(t, real), began)
	if s := diff(wantList, show(t, d, now)); s != "" {
		t.Errorf("%v\nthe draft differs from what BuildKit makes:\n%s", actions, s)
	}
	over, _ := unpacked(t, d, base)
	// A layer has no xattrs but capabilities; the base's own still show.
	wantList, overList := withoutXattrs(wantList), withoutXattrs(show(t, over, now))
	// overlayfs gives hard links of lower layers different inodes.
	if s := diff(wantList, overList); s != "" && !t.Failed() {
		t.Errorf("%v\nthe unpacked layer differs from what BuildKit makes:\n%s", actions, s)
	}
	return true
}

// withoutXattrs drops from a listing the xattrs that layers do not carry.
func withoutXattrs(list []string) []string {
	out := make([]string, len(list))
	for i, l := range list {
		out[i] = userXattr.ReplaceAllString(l, "")
	}
	return out
}

var userXattr = regexp.MustCompile(` user\.[xy]="[^"]*"`)

// plantArchive puts tars where sources are.
func plantArchive(t *testing.T, r *rand.Rand, dir string) {
	t.Helper()
	for _, name := range []string{"a", "d.txt"} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		var seen []string
		for range 1 + r.Intn(8) {
			n := ""
			for range 1 + r.Intn(3) {
				n = path.Join(n, pick(r, "a", "b", "c", "new", "d.txt"))
			}
			h := &tar.Header{Name: pick(r, "", "", "./", "/") + n, Mode: pick(r, int64(0o644), 0o4755, 0o600), Uid: r.Intn(3), Gid: r.Intn(3), ModTime: old}
			switch k := r.Intn(8); {
			case k < 3:
				h.Typeflag, h.Mode, h.Name = tar.TypeDir, 0o750, h.Name+"/"
			case k < 5:
				h.Typeflag, h.Size = tar.TypeReg, 3
				seen = append(seen, n)
			case k == 5:
				h.Typeflag, h.Linkname = tar.TypeSymlink, pick(r, "a", "../b", "/c", "nowhere")
			case k == 6 && len(seen) > 0:
				h.Typeflag, h.Linkname = tar.TypeLink, pick(r, seen...)
			default:
				h.Typeflag, h.PAXRecords = tar.TypeReg, map[string]string{"SCHILY.xattr.user.y": "v"}
			}
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if h.Size > 0 {
				fmt.Fprintf(w, "%03d", r.Intn(1000))
			}
		}
		w.Close()
		p := filepath.Join(dir, name)
		os.RemoveAll(p)
		out := b.Bytes()
		if r.Intn(2) == 0 {
			var z bytes.Buffer
			g := gzip.NewWriter(&z)
			g.Write(out)
			g.Close()
			out = z.Bytes()
		}
		if err := os.WriteFile(p, out, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	age(t, dir)
}
