package userns

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"
)

// span maps count ids from inside on to those from outside on.
type span struct{ inside, outside, count int64 }

// subordinate reads the ranges that file, /etc/subuid or /etc/subgid, gives to
// the user, whom it names or numbers.
func subordinate(file, name, uid string) []span {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	var spans []span
	next := int64(1)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		parts := strings.Split(strings.TrimSpace(lines.Text()), ":")
		if len(parts) != 3 || parts[0] != name && parts[0] != uid {
			continue
		}
		start, err1 := strconv.ParseInt(parts[1], 10, 64)
		count, err2 := strconv.ParseInt(parts[2], 10, 64)
		if err1 != nil || err2 != nil || start < 0 || count <= 0 || start > 1<<32-count {
			continue
		}
		spans = append(spans, span{next, start, count})
		next += count
	}
	return spans
}

// userName is the user's name, or its number where nobody names it.
func userName() string {
	uid := strconv.Itoa(os.Geteuid())
	if u, err := user.LookupId(uid); err == nil {
		return u.Username
	}
	if name := os.Getenv("USER"); name != "" {
		return name
	}
	return uid
}

// ids are the maps of a namespace to be.
type ids struct {
	uids, gids []span
	// helpers write them: the user's own rights do for a single id only.
	helpers bool
}

// plan decides on the maps: the user's subordinate ids where there are any and
// the helpers that may map them; else the user's own id alone. Root, who may
// map what it has, keeps every id as it is.
func plan() ids {
	uid, gid := int64(os.Geteuid()), int64(os.Getegid())
	if uid == 0 {
		return ids{uids: same(own().uids), gids: same(own().gids)}
	}
	one := ids{uids: []span{{0, uid, 1}}, gids: []span{{0, gid, 1}}}
	name, number := userName(), strconv.FormatInt(uid, 10)
	uids, gids := subordinate("/etc/subuid", name, number), subordinate("/etc/subgid", name, number)
	if uids == nil || gids == nil {
		return one
	}
	for _, helper := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(helper); err != nil {
			return one
		}
	}
	return ids{append(one.uids, uids...), append(one.gids, gids...), true}
}

// same maps the ids inside spans to themselves.
func same(spans []span) []span {
	out := slices.Clone(spans)
	for i := range out {
		out[i].outside = out[i].inside
	}
	return out
}

// mapped reads a map.
func mapped(file string) []span {
	data, _ := os.ReadFile(file)
	var spans []span
	for line := range strings.Lines(string(data)) {
		var s span
		if n, _ := fmt.Sscan(line, &s.inside, &s.outside, &s.count); n == 3 {
			spans = append(spans, s)
		}
	}
	return spans
}

// write gives the namespace of process pid its maps.
func (m ids) write(pid int) error {
	proc := "/proc/" + strconv.Itoa(pid) + "/"
	if !m.helpers {
		if os.Geteuid() != 0 { // the kernel's condition for mapping one's own group
			if err := os.WriteFile(proc+"setgroups", []byte("deny"), 0); err != nil {
				return err
			}
		}
		if err := os.WriteFile(proc+"uid_map", []byte(lines(m.uids)), 0); err != nil {
			return err
		}
		return os.WriteFile(proc+"gid_map", []byte(lines(m.gids)), 0)
	}
	uids := make(chan error, 1)
	go func() { uids <- help("newuidmap", pid, m.uids) }()
	err := help("newgidmap", pid, m.gids)
	if e := <-uids; e != nil {
		err = e
	}
	return err
}

func lines(spans []span) string {
	var b strings.Builder
	for _, s := range spans {
		fmt.Fprintln(&b, s.inside, s.outside, s.count)
	}
	return b.String()
}

func help(program string, pid int, spans []span) error {
	args := []string{strconv.Itoa(pid)}
	for _, s := range spans {
		for _, n := range []int64{s.inside, s.outside, s.count} {
			args = append(args, strconv.FormatInt(n, 10))
		}
	}
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		text := strings.TrimPrefix(strings.TrimSpace(string(out)), program+": ")
		return fmt.Errorf("%s: %s (%w); /etc/subuid and /etc/subgid must give the user these ranges, and the program must be setuid root", program, text, err)
	}
	return nil
}
