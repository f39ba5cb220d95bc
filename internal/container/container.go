// Package container keeps records of the containers that were run from images
// and runs them.
//
// A container is a record in the store (bucket "container"), which keeps its
// image's layers alive, and a directory ROOT/containers/ID with its upper
// directory. There is no daemon: the process that runs a container holds a lock
// on ROOT/containers/ID/lock, and the container runs as long as the lock is
// held. One whose strake was killed reads as exited with 137, because the
// sandbox dies with its strake.
package container

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/sandbox"
)

const bucket = "container"

// State is where a container is in its life.
type State string

// The states of this version.
const (
	Created State = "created"
	Running State = "running"
	Exited  State = "exited"
)

// Container is what is recorded of one.
type Container struct {
	ID       string // 64 hex digits
	Name     string
	Image    string     // as it was asked for
	ImageID  oci.Digest // its config
	Manifest oci.Digest `json:",omitempty"` // and what names it,
	Target   oci.Digest `json:",omitempty"` // so that the image stays while the container does
	Layers   []oci.Digest
	Command  []string // entrypoint and arguments
	// What run was told about its process, for commit: "" and nothing is the
	// image's.
	User       string   `json:",omitempty"`
	WorkingDir string   `json:",omitempty"`
	Env        []string `json:",omitempty"` // KEY=value sets, KEY removes
	Created    time.Time
	Started    time.Time
	Finished   time.Time
	State      State
	ExitCode   int
	OOM        bool `json:",omitempty"`
	Pid        int  `json:",omitempty"`
	Labels     map[string]string
	Network    string
	Remove     bool    // --rm
	Mounts     []Mount `json:",omitempty"` // what the caller and the image's VOLUMEs put there
	Host       Host
}

// Mount is a directory or file from outside of the container.
type Mount struct {
	Type, Source, Destination string
	ReadOnly                  bool `json:",omitempty"`
}

// Host is what else run was told, for inspect.
type Host struct {
	Tty, OpenStdin       bool             `json:",omitempty"`
	Hostname             string           `json:",omitempty"`
	Privileged, ReadOnly bool             `json:",omitempty"`
	CapAdd, CapDrop      []string         `json:",omitempty"`
	Groups, ExtraHosts   []string         `json:",omitempty"`
	ShmSize              int64            `json:",omitempty"`
	Limits               sandbox.Limits   `json:",omitzero"`
	Ulimits              []sandbox.Rlimit `json:",omitempty"`
	SecurityOpt          []string         `json:",omitempty"` // a profile's file is not kept
}

// Set is the containers of one store.
type Set struct {
	store *store.Store
	root  string
}

// In gives the containers of s.
func In(s *store.Store) *Set { return &Set{store: s, root: filepath.Join(s.Root(), "containers")} }

func (c *Set) dir(id string) string { return filepath.Join(c.root, id) }

// List lists all, the newest first.
func (c *Set) List(ctx context.Context) ([]*Container, error) {
	records, err := c.store.Records(ctx, bucket)
	if err != nil {
		return nil, err
	}
	var list []*Container
	for _, r := range records {
		var one Container
		if err := json.Unmarshal(r.Value, &one); err != nil {
			return nil, fmt.Errorf("container %s: %v: %w", r.Key, err, oci.ErrCorrupt)
		}
		if one.State != Exited && !c.held(one.ID) {
			if one.State == Running { // its strake was killed, and it with it
				one.State, one.ExitCode, one.Pid = Exited, 137, 0
			}
			if one.Remove {
				c.tidy(ctx, one.ID)
				continue
			}
		}
		list = append(list, &one)
	}
	slices.SortFunc(list, func(a, b *Container) int { return b.Created.Compare(a.Created) })
	return list, nil
}

// held tells whether a process runs the container.
func (c *Set) held(id string) bool {
	f, err := os.Open(filepath.Join(c.dir(id), "lock"))
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == unix.EWOULDBLOCK
}

// Find looks one up by its ID, its name or a prefix of its ID, in docker's
// order: oci.ErrNotFound, or oci.ErrInvalid for an ambiguous prefix.
func (c *Set) Find(ctx context.Context, name string) (*Container, error) {
	list, err := c.List(ctx)
	if err != nil {
		return nil, err
	}
	return Among(list, name)
}

// Among is Find in a list that the caller has already.
func Among(list []*Container, name string) (*Container, error) {
	var prefixed []*Container
	for _, one := range list {
		if one.ID == name || one.Name == strings.TrimPrefix(name, "/") {
			return one, nil
		}
		if name != "" && strings.HasPrefix(one.ID, name) {
			prefixed = append(prefixed, one)
		}
	}
	switch len(prefixed) {
	case 0:
		return nil, fmt.Errorf("No such container: %s%w", name, oci.Unsaid(oci.ErrNotFound))
	case 1:
		return prefixed[0], nil
	}
	return nil, fmt.Errorf("multiple IDs found with provided prefix: %s%w", name, oci.Unsaid(oci.ErrInvalid))
}

// Delete removes a container that does not run, or with force kills it first.
func (c *Set) Delete(ctx context.Context, name string, force bool) error {
	one, err := c.Find(ctx, name)
	if err != nil {
		return err
	}
	if one.State == Running {
		if !force {
			return fmt.Errorf("cannot remove container %q: container is running: stop the container before removing or force remove%w", name, oci.Unsaid(oci.ErrConflict))
		}
		if err := c.kill(ctx, one); err != nil {
			return fmt.Errorf("cannot remove container %q: %w", name, err)
		}
	}
	return c.discard(ctx, one.ID)
}

// kill kills a container that another process runs, and waits for that
// process to put it away.
func (c *Set) kill(ctx context.Context, one *Container) error {
	// The lock is held as the signal is sent: the pid is the container's.
	if one.Pid > 1 && c.held(one.ID) {
		if err := unix.Kill(one.Pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	for c.held(one.ID) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

func (c *Set) discard(ctx context.Context, id string) error {
	if err := c.store.DeleteRecord(ctx, bucket, id); err != nil {
		return err
	}
	return os.RemoveAll(c.dir(id))
}

// tidy discards what a killed strake would have discarded. Where its files are
// not this process's to remove, as an ordinary user's outside of his namespace,
// the record stays for one that may.
func (c *Set) tidy(ctx context.Context, id string) {
	if os.RemoveAll(c.dir(id)) == nil {
		_ = c.store.DeleteRecord(ctx, bucket, id) // else the next one does
	}
}

func (c *Set) record(ctx context.Context, one *Container) error {
	value, err := json.Marshal(one)
	if err != nil {
		return err
	}
	holds := append([]oci.Digest{one.ImageID}, one.Layers...)
	for _, d := range []oci.Digest{one.Manifest, one.Target} {
		if d != "" {
			holds = append(holds, d)
		}
	}
	return c.store.PutRecord(ctx, store.Record{Bucket: bucket, Key: one.ID, Value: value, Holds: holds, Created: one.Created})
}

// reserve gives a new container its ID and name. It holds the lock on all
// names while it looks and records.
func (c *Set) reserve(ctx context.Context, one *Container) error {
	if err := os.MkdirAll(c.root, 0o711); err != nil {
		return err
	}
	all, err := os.OpenFile(filepath.Join(c.root, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer all.Close()
	if err := unix.Flock(int(all.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", all.Name(), err)
	}
	if one.Name != "" && !validName().MatchString(one.Name) {
		return fmt.Errorf("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed%w", one.Name, oci.Unsaid(oci.ErrInvalid))
	}
	list, err := c.List(ctx)
	if err != nil {
		return err
	}
	taken := map[string]string{}
	for _, other := range list {
		taken[other.Name] = other.ID
	}
	if id := taken[one.Name]; one.Name != "" && id != "" {
		return fmt.Errorf("Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.%w",
			"/"+one.Name, id, oci.Unsaid(oci.ErrConflict))
	}
	for one.Name == "" {
		if name := randomName(); taken[name] == "" {
			one.Name = name
		}
	}
	return c.record(ctx, one)
}

func validName() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`) }

func newID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// randomName makes a name in docker's manner: an adjective and somebody who
// knew the sea, ships or how to build them.
func randomName() string {
	adjectives := strings.Fields(`able amber bold brave bright brisk calm candid clever crisp daring deft eager early
		fair fleet frank gentle glad golden hardy hearty honest jolly keen kind lively loyal lucid mellow merry mild
		modest nimble noble patient plain proud quick quiet ready robust salty sharp sleek sober spry stately steady
		stout strong sturdy sunny swift tidy trim true upbeat vivid warm willing wise witty`)
	people := strings.Fields(`amundsen anson baret bass beaufort bering bligh bowditch brunel cabot chapelle chapman
		chichester colvin cook cousteau dampier drake earle elcano fisher fitzroy flinders froude fulton gilbert
		harrison herreshoff holland hopper hudson irving kuper laperouse lindemann maury mackinnon magellan maclear
		mercator nansen nelson parsons pett pytheas rickover ross sauvage scott shackleton slocum tasman taylor tharp
		torvill vespucci watts worsley zheng`)
	var b [4]byte
	rand.Read(b[:])
	return adjectives[(int(b[0])<<8|int(b[1]))%len(adjectives)] + "_" + people[(int(b[2])<<8|int(b[3]))%len(people)]
}
