package sandbox

import (
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/moby/sys/user"
)

// identity is who the process is.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// lookUp resolves docker's USER in the root that the calling thread sees.
// A root without /etc/passwd has numbers only.
func lookUp(spec string, more []string) (identity, error) {
	passwd, close1 := openDatabase("/etc/passwd")
	defer close1()
	group, close2 := openDatabase("/etc/group")
	defer close2()
	found, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, passwd, group)
	if err != nil {
		return identity{}, err
	}
	id := identity{uid: uint32(found.Uid), gid: uint32(found.Gid), home: found.Home}
	gids := found.Sgids
	if len(more) > 0 {
		group, close3 := openDatabase("/etc/group")
		defer close3()
		extra, err := user.GetAdditionalGroups(more, group)
		if err != nil {
			return identity{}, fmt.Errorf("%w", err)
		}
		gids = append(gids, extra...)
	}
	if !slices.Contains(gids, found.Gid) { // or access that is denied to the group could be had without it
		gids = append([]int{found.Gid}, gids...)
	}
	for _, g := range gids {
		id.groups = append(id.groups, uint32(g))
	}
	return id, nil
}

// openDatabase opens a file of the root that an image made: it is read only if
// it is a regular file (a FIFO would block us), and only its first 16 MiB. Of a
// directory the first read fails, as in docker, and nobody is found.
func openDatabase(path string) (io.Reader, func()) {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() && !info.IsDir() {
		return nil, func() {}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, func() {}
	}
	return io.LimitReader(f, 16<<20), func() { f.Close() }
}
