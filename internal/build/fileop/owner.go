package fileop

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/sys/user"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

var errNotRegular = errors.New("not a regular file")

// maxUserFile bounds /etc/passwd and /etc/group, in bytes.
const maxUserFile = 10 << 20

// owner is whom an action gives what it makes to; nil leaves it as it is.
type owner struct{ uid, gid int }

// ownerOf looks a ChownOpt's names up. As in BuildKit a name that the files do
// not have means 0, a user's group is the one in passwd, and that of a numeric
// user is the same number.
func ownerOf(ctx context.Context, o *pb.ChownOpt, users func(int64) (tree.View, error)) (*owner, error) {
	if o == nil {
		return nil, nil
	}
	var who owner
	switch u := o.GetUser().GetUser().(type) {
	case *pb.UserOpt_ByID:
		who.uid, who.gid = int(u.ByID), int(u.ByID)
	case *pb.UserOpt_ByName:
		f, err := userFile(ctx, u.ByName, users, "etc/passwd")
		if err != nil {
			return nil, err
		}
		if f == nil {
			break
		}
		defer f.Close()
		all, err := user.ParsePasswdFilter(f, func(e user.User) bool { return e.Name == u.ByName.Name })
		if err != nil {
			return nil, fmt.Errorf("/etc/passwd: %w", err)
		}
		if len(all) > 0 {
			who.uid, who.gid = all[0].Uid, all[0].Gid
		}
	}
	switch g := o.GetGroup().GetUser().(type) {
	case *pb.UserOpt_ByID:
		who.gid = int(g.ByID)
	case *pb.UserOpt_ByName:
		f, err := userFile(ctx, g.ByName, users, "etc/group")
		if err != nil {
			return nil, err
		}
		if f == nil {
			break
		}
		defer f.Close()
		all, err := user.ParseGroupFilter(f, func(e user.Group) bool { return e.Name == g.ByName.Name })
		if err != nil {
			return nil, fmt.Errorf("/etc/group: %w", err)
		}
		if len(all) > 0 {
			who.gid = all[0].Gid
		}
	}
	for _, id := range []*int{&who.uid, &who.gid} {
		if *id == math.MaxUint32 {
			*id = 0
		}
	}
	if who.uid < 0 || who.gid < 0 {
		return nil, fmt.Errorf("owner %d:%d: %w", who.uid, who.gid, oci.ErrInvalid)
	}
	return &who, nil
}

// userFile opens the file p in the view that a name is looked up in; nil if
// there is none.
func userFile(ctx context.Context, n *pb.NamedUserOpt, users func(int64) (tree.View, error), p string) (io.ReadCloser, error) {
	if n == nil {
		return nil, fmt.Errorf("owner without a name: %w", oci.ErrInvalid)
	}
	if n.Input < 0 { // COPY --chown=NAME on scratch
		return nil, fmt.Errorf("owner %s: invalid user index: %d: scratch has no %s, so give numbers: %w", n.Name, n.Input, slash(p), oci.ErrInvalid)
	}
	if users == nil {
		return nil, fmt.Errorf("owner %s: nowhere to look the name up: %w", n.Name, oci.ErrInvalid)
	}
	v, err := users(n.Input)
	if err != nil || v == nil {
		return nil, err
	}
	s := statOf(v)
	at, err := s.resolve(p, true)
	if err != nil {
		return nil, nil // leads nowhere: as if there were none
	}
	e := s(at)
	switch {
	case e == nil:
		return nil, nil
	case e.Type != layer.Regular:
		return nil, pathError("open", p, errNotRegular)
	case e.Size > maxUserFile:
		return nil, fmt.Errorf("%s has %d bytes, more than %d: %w", slash(p), e.Size, maxUserFile, oci.ErrInvalid)
	}
	return v.Open(ctx, at)
}
