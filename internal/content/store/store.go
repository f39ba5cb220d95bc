// Package store is the disk: blobs by digest, layers in their forms, tags and
// where they pointed before, leases for work in flight, and garbage collection.
//
// Several processes use one store at once; there is no daemon. Files hold
// bytes and are written aside, synced and renamed; SQLite holds what needs
// transactions. A crash at any moment loses nothing that was acknowledged and
// leaves nothing that blocks: what a dead process left is found by its
// unlocked lease file and swept.
//
// Invariants:
//   - A row of table blob decides whether a blob is there; a file without a row
//     is a leftover, a row without a file is treated as absent and repaired by
//     the next Put.
//   - A file is renamed to its place, and deleted from it, only while the
//     database's write lock is held (see admit and Collect), so that a Put and
//     a Collect of the same digest cannot interleave.
//   - What keeps what alive is in table edge, for every kind of reason alike.
//   - What was removed is not there for anybody (column gone of its manifests)
//     and is kept by a row of waiting until its space is reclaimed.
//   - What was not synced carries the boot it was written in. After another
//     boot it is verified before its first use.
//
// Layout below the root:
//
//	strake.db                tags, their log, images' facts, edges, records
//	names                    journal of what has a name, should strake.db be lost
//	blobs/sha256/ab/HEX      packed bytes: manifests, configs, layers as they came
//	layers/ab/HEX/toc        table of contents of the layer with that diffID
//	layers/ab/HEX/tree       its unpacked form, for overlayfs
//	partial/HEX              unfinished downloads, kept for resuming
//	partial/put-…            blobs being written; locked while their process lives
//	leases/ID                what a lease holds; locked while its process lives
//	work/ID/…                scratch directories of a lease
//	work/trash-…             what is being deleted
//	userns                   marks a store whose trees a user namespace made
package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/userns"
)

// Store is an open store. Its methods may be called from many goroutines.
// It implements content.Source, Sink, RangeOpener, Resumer, Packer,
// OriginLister, OriginRecorder, TagLister, ReferrerLister and SparseSink.
type Store struct {
	root     string
	log      *slog.Logger
	db       *sql.DB
	readOnly string // why it cannot be written, or ""
	scrap    string // directory to delete on Close, or ""
	boot     string // identifies this boot of the machine
	rootless bool
	full     atomic.Bool // the disk was full
	worked   atomic.Bool // a lease was made real
	changed  atomic.Bool // an operation was written down
	op       operation   // what is done outside of any other
	keep     time.Duration

	statements sync.Map // query → *sql.Stmt, see ask

	wmu sync.Mutex // one write transaction at a time; others wait here, not in SQLite's sleeps

	making singleflight.Group // TOCs, trees and packings being made in this process

	mu      sync.Mutex
	leases  map[*lease]struct{}
	tocs    map[oci.Digest]*layer.TOC
	entries int          // of all tocs
	synced  []oci.Digest // blobs on disk for good, whose rows do not say so yet
	closed  bool
}

var (
	_ content.Source         = (*Store)(nil)
	_ content.Sink           = (*Store)(nil)
	_ content.RangeOpener    = (*Store)(nil)
	_ content.Resumer        = (*Store)(nil)
	_ content.Packer         = (*Store)(nil)
	_ content.OriginLister   = (*Store)(nil)
	_ content.OriginRecorder = (*Store)(nil)
	_ content.TagLister      = (*Store)(nil)
	_ content.ReferrerLister = (*Store)(nil)
	_ content.SparseSink     = (*Store)(nil)
)

// Options for Open; the zero value works.
type Options struct {
	Log *slog.Logger // nil is silent
	// Command is what this process does, for the log of operations.
	Command string
	// KeepRemoved is how long what was removed can be had back: DefaultKeep if
	// zero; below zero it is deleted at once.
	KeepRemoved time.Duration
}

// DefaultKeep is how long what was removed stays, if the disk has room.
const DefaultKeep = 7 * 24 * time.Hour

// Open opens the store at root and makes it if there is none. A root that
// cannot be written fails with the path and the way out (--root), unless there
// is a store already: that one is opened for reading, and what would write
// fails.
func Open(root string, opt Options) (*Store, error) {
	s, err := newStore(root, opt)
	if err != nil {
		return nil, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", s.root, err)
	}
	s.boot = strings.TrimSpace(string(boot))
	if err := s.openDatabase(); err != nil {
		return nil, err
	}
	s.markNamespace()
	return s, nil
}

// newStore is the store at root without its database.
func newStore(root string, opt Options) (*Store, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	s := &Store{
		root:     root,
		log:      opt.Log,
		op:       operation{command: opt.Command, began: time.Now()},
		keep:     cmp.Or(opt.KeepRemoved, DefaultKeep),
		rootless: os.Geteuid() != 0 || userns.Inside(),
		leases:   map[*lease]struct{}{},
		tocs:     map[oci.Digest]*layer.TOC{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s, s.checkNamespace()
}

// Close releases the store and every lease of this process.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	held := make([]*lease, 0, len(s.leases))
	for l := range s.leases {
		held = append(held, l)
	}
	pending := len(s.synced) > 0
	s.mu.Unlock()
	for _, l := range held {
		s.release(l)
	}
	if pending {
		// Best effort: unmarked blobs are only verified once more after a reboot.
		if err := s.write(context.Background(), func(*tx) error { return nil }); err != nil {
			s.log.Debug("store: mark synced blobs", "err", err)
		}
	}
	if err := s.tidy(context.Background()); err != nil {
		s.log.Warn("store: sweep", "err", err)
	}
	err := s.db.Close()
	if s.scrap != "" {
		os.RemoveAll(s.scrap)
	}
	return err
}

// Root is the directory given to Open, absolute.
func (s *Store) Root() string { return s.root }

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}

// blobPath is where the bytes of d lie; nowhere, of a digest that is none, as a
// damaged database may have it.
func (s *Store) blobPath(d oci.Digest) string {
	if checkDigest(d) != nil {
		return s.path("blobs", "invalid", "none")
	}
	hex := d.Encoded()
	return filepath.Join(s.root, "blobs", string(d.Algorithm()), hex[:2], hex)
}

func (s *Store) layerPath(diffID oci.Digest) string {
	if checkDigest(diffID) != nil {
		return s.path("layers", "invalid", "none")
	}
	hex := diffID.Encoded()
	if alg := string(diffID.Algorithm()); alg != "sha256" {
		hex = alg + "-" + hex
		return filepath.Join(s.root, "layers", alg, hex)
	}
	return filepath.Join(s.root, "layers", hex[:2], hex)
}

func checkDigest(d oci.Digest) error {
	if plainSHA256(string(d)) {
		return nil
	}
	if err := d.Validate(); err != nil || !d.Algorithm().Available() {
		return fmt.Errorf("digest %q: %w", d, oci.ErrInvalid)
	}
	return nil
}

// plainSHA256 knows nearly every digest there is. Validate matches a regular
// expression, which was a tenth of what a prune of thousands took.
func plainSHA256(d string) bool {
	hex, ok := strings.CutPrefix(d, "sha256:")
	if !ok || len(hex) != 64 {
		return false
	}
	for _, c := range []byte(hex) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// failed says what went wrong below path in the user's terms.
func (s *Store) failed(path string, err error) error {
	switch {
	case err == nil:
		return nil
	case isCorrupt(err):
		return s.damaged(err)
	case errors.Is(err, oci.ErrNoSpace), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), isFull(err):
		s.full.Store(true)
		return fullError(s.root)
	case errors.Is(err, unix.EROFS), isReadOnly(err):
		return s.cannotWrite("read-only file system")
	case errors.Is(err, fs.ErrPermission) && path != "":
		return fmt.Errorf("store %s: %v; choose another place with --root DIR or STRAKE_ROOT: %w", s.root, err, oci.ErrDenied)
	}
	return err
}

// fullError is a full disk under the store with that root.
type fullError string

func (e fullError) Error() string {
	return fmt.Sprintf("store %s: %v; free some space (strake system prune) or choose another place with --root DIR or STRAKE_ROOT", string(e), oci.ErrNoSpace)
}

func (e fullError) Unwrap() error { return oci.ErrNoSpace }

func (s *Store) cannotWrite(why string) error {
	return fmt.Errorf("store %s cannot be written: %s; choose another place with --root DIR or STRAKE_ROOT", s.root, why)
}

func notFound(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, oci.ErrNotFound)...)
}
