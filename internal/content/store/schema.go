package store

import (
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	_ "modernc.org/sqlite" // the driver

	"github.com/strake-project/strake/internal/oci"
)

// schemaVersion is the database's PRAGMA user_version. A store with a newer
// one is refused; an older one is brought up by upgrades.
const schemaVersion = 1 + len(upgrades)

// Kinds of edge: why child stays while parent does.
const (
	edgeBlob    = 1 // a manifest's config or layer
	edgeImage   = 2 // an index's manifest
	edgeSubject = 3 // a referrer stays with its subject
	edgeForm    = 4 // a packed layer and its diffID stay with each other
)

// Digests are kept as text throughout. Times are Unix nanoseconds, repositories
// canonical ("docker.io/library/busybox").
const schema = `
CREATE TABLE blob(
	digest TEXT PRIMARY KEY, mediatype TEXT NOT NULL, size INTEGER NOT NULL,
	plain INTEGER NOT NULL, -- length when decompressed, as far as the bytes tell; of a plain blob its size
	boot TEXT NOT NULL      -- the boot it was written in, '' once synced
) WITHOUT ROWID;
CREATE TABLE manifest(
	digest TEXT PRIMARY KEY, mediatype TEXT NOT NULL, size INTEGER NOT NULL,
	config TEXT NOT NULL,   -- '' of an index
	image TEXT NOT NULL,    -- ID: the config, or the manifest itself where the config is no image's; '' of an index
	subject TEXT NOT NULL, artifacttype TEXT NOT NULL, annotations TEXT NOT NULL,
	named INTEGER NOT NULL, -- 1 once it had a name
	added INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX manifest_image ON manifest(image);
CREATE INDEX manifest_config ON manifest(config);
CREATE INDEX manifest_subject ON manifest(subject) WHERE subject <> '';
CREATE TABLE image(
	id TEXT PRIMARY KEY, artifact INTEGER NOT NULL, created INTEGER NOT NULL,
	os TEXT NOT NULL, arch TEXT NOT NULL, variant TEXT NOT NULL, osversion TEXT NOT NULL,
	labels TEXT NOT NULL,   -- JSON or ''
	layers TEXT NOT NULL,   -- diffIDs with a space between them
	size INTEGER NOT NULL   -- of an artifact; an image's is the sum of its layers
) WITHOUT ROWID;
CREATE TABLE layer(
	diffid TEXT PRIMARY KEY,
	size INTEGER NOT NULL,  -- of the plain tar; -1 while unknown
	bytes INTEGER NOT NULL, -- sum of the files' sizes, estimated until toc is 1
	toc INTEGER NOT NULL,   -- 1 once the TOC was made
	tree INTEGER NOT NULL,  -- 0 none, 1 unpacked from a foreign tar, 2 gives the tar's bytes again
	boot TEXT NOT NULL      -- the boot the tree was made in, '' once verified after another
) WITHOUT ROWID;
CREATE TABLE packed(
	diffid TEXT NOT NULL, digest TEXT NOT NULL, packing TEXT NOT NULL,
	verified INTEGER NOT NULL, -- 0: a manifest and its config claim it
	PRIMARY KEY(diffid, digest)
) WITHOUT ROWID;
CREATE INDEX packed_digest ON packed(digest);
CREATE TABLE edge(
	parent TEXT NOT NULL, child TEXT NOT NULL, kind INTEGER NOT NULL, ord INTEGER NOT NULL,
	PRIMARY KEY(parent, child, kind)
) WITHOUT ROWID;
CREATE INDEX edge_child ON edge(child, parent, kind);
CREATE INDEX edge_image ON edge(parent, ord, child) WHERE kind = 2;
CREATE TABLE tag(
	repo TEXT NOT NULL, tag TEXT NOT NULL, digest TEXT NOT NULL, at INTEGER NOT NULL,
	PRIMARY KEY(repo, tag)
) WITHOUT ROWID;
CREATE INDEX tag_digest ON tag(digest);
CREATE TABLE repodigest(
	repo TEXT NOT NULL, digest TEXT NOT NULL,
	PRIMARY KEY(repo, digest)
) WITHOUT ROWID;
CREATE INDEX repodigest_digest ON repodigest(digest);
CREATE TABLE taglog(
	n INTEGER PRIMARY KEY, repo TEXT NOT NULL, tag TEXT NOT NULL, digest TEXT NOT NULL, at INTEGER NOT NULL
);
CREATE INDEX taglog_tag ON taglog(repo, tag, n);
CREATE TABLE origin(
	digest TEXT NOT NULL, repo TEXT NOT NULL,
	PRIMARY KEY(digest, repo)
) WITHOUT ROWID;
CREATE TABLE record(
	bucket TEXT NOT NULL, key TEXT NOT NULL, value BLOB, created INTEGER NOT NULL, used INTEGER NOT NULL,
	PRIMARY KEY(bucket, key)
) WITHOUT ROWID;
CREATE TABLE record_hold(
	digest TEXT NOT NULL, bucket TEXT NOT NULL, key TEXT NOT NULL,
	PRIMARY KEY(digest, bucket, key)
) WITHOUT ROWID;
CREATE INDEX record_hold_key ON record_hold(bucket, key);
`

// upgrades bring a store from version 1, which schema makes, to the next ones.
// A new store goes the same way.
var upgrades = [...]string{`
ALTER TABLE manifest ADD COLUMN gone INTEGER NOT NULL DEFAULT 0; -- 1: removed; it is not there for anybody but undo
ALTER TABLE image ADD COLUMN used INTEGER NOT NULL DEFAULT 0;    -- when it was last run, built from or pushed
ALTER TABLE taglog ADD COLUMN op INTEGER NOT NULL DEFAULT 0;
CREATE TABLE operation(
	id INTEGER PRIMARY KEY, command TEXT NOT NULL,
	began INTEGER NOT NULL, -- its process or request
	at INTEGER NOT NULL,    -- its first change
	undone INTEGER NOT NULL -- the operation that took it back, or 0
);
CREATE TABLE change(        -- what an operation did to names, in its order
	n INTEGER PRIMARY KEY, op INTEGER NOT NULL, kind INTEGER NOT NULL,
	repo TEXT NOT NULL, tag TEXT NOT NULL, old TEXT NOT NULL, new TEXT NOT NULL
);
CREATE INDEX change_op ON change(op, n);
CREATE TABLE waiting(       -- what was removed and stays until its space is reclaimed
	digest TEXT NOT NULL, op INTEGER NOT NULL,
	PRIMARY KEY(digest, op)
) WITHOUT ROWID;
CREATE INDEX waiting_op ON waiting(op, digest);
CREATE TABLE pin(           -- repo '' and an image's ID, or a tag
	repo TEXT NOT NULL, tag TEXT NOT NULL,
	PRIMARY KEY(repo, tag)
) WITHOUT ROWID;
`, `
ALTER TABLE image ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0; -- of its layers together
ALTER TABLE image ADD COLUMN exact INTEGER NOT NULL DEFAULT 0; -- 1 when all of them have a TOC
CREATE TRIGGER layer_weighed AFTER UPDATE OF bytes, toc ON layer WHEN new.bytes <> old.bytes OR new.toc <> old.toc BEGIN
	` + weighImages + ` AND id IN (SELECT m.image FROM edge e JOIN manifest m ON m.digest = e.parent
		WHERE e.kind = 1 AND e.child IN (SELECT new.diffid UNION ALL SELECT digest FROM packed WHERE diffid = new.diffid));
END;
` + weighImages + `;
`}

// weighImages sums up the layers of images; more conditions may follow. A list
// of thousands need not look at the layers then. What changes a layer's bytes
// need not know: there is a trigger.
const weighImages = `UPDATE image SET (bytes, exact) = (SELECT coalesce(sum(l.bytes), 0), count(l.diffid) = count(*) AND coalesce(min(l.toc), 1)
	FROM json_each(CASE layers WHEN '' THEN '[]' ELSE '["' || replace(layers, ' ', '","') || '"]' END) j LEFT JOIN layer l ON l.diffid = j.value)
	WHERE artifact = 0`

// openDatabase opens or makes the database. The common case costs one open and
// one PRAGMA: nothing is created, no statement of the schema is run.
func (s *Store) openDatabase() error {
	path := s.path("strake.db")
	if err := unix.Access(s.root, unix.W_OK); err == unix.EROFS || err == unix.EACCES {
		return s.openReadOnly(path, err)
	}
	_, err := os.Stat(path)
	if os.IsNotExist(err) {
		if err := s.create(path); err != nil {
			return s.failed(s.root, err)
		}
	} else if err != nil {
		return s.failed(s.root, err)
	}
	s.db = connect(path, "mode=rw")
	v, err := s.version()
	if err == nil && v < schemaVersion { // made by an older strake, or its maker died before the tables
		s.db.Close()
		if err := s.create(path); err != nil {
			return s.failed(s.root, err)
		}
		s.db = connect(path, "mode=rw")
		v, err = s.version()
	}
	return s.checkVersion(v, err)
}

func (s *Store) version() (v int, err error) {
	err = s.db.QueryRow("PRAGMA user_version").Scan(&v)
	return v, err
}

func (s *Store) checkVersion(v int, err error) error {
	if err == nil && v > schemaVersion {
		err = fmt.Errorf("store %s was written by a newer strake (its schema is %d, this strake knows %d): use that one, or choose another place with --root DIR or STRAKE_ROOT: %w", s.root, v, schemaVersion, oci.ErrUnsupported)
	} else if isCorrupt(err) {
		err = s.damaged(err)
	} else if err != nil {
		err = s.failed(s.root, fmt.Errorf("store %s: %w", s.root, err))
	}
	if err != nil {
		s.db.Close()
	}
	return err
}

// makeDirs makes the directories of a store that are not there.
func (s *Store) makeDirs() error {
	for _, dir := range []string{"blobs/sha256", "layers", "partial", "leases", "work"} {
		if err := os.MkdirAll(s.path(dir), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// create makes the directories and the tables. Processes that do so at once
// take turns by a lock on the root directory.
func (s *Store) create(path string) error {
	if err := s.makeDirs(); err != nil {
		return err
	}
	dir, err := os.Open(s.root)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := flock(dir, unix.LOCK_EX); err != nil {
		return err
	}
	if fi, err := os.Stat(path); (err != nil || fi.Size() == 0) && s.hadDatabase() {
		return &DamagedError{Root: s.root, What: "is missing"}
	}
	if err := makeDatabase(path); err != nil {
		return err
	}
	return dir.Sync()
}

// makeDatabase makes the tables, if there are none. Others may be let into the
// root directory, but not read what containers were told in their environment:
// SQLite gives its further files the mode of the first.
func makeDatabase(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	db := connect(path, "mode=rw")
	defer db.Close()
	var v int
	if err := db.QueryRow("PRAGMA user_version").Scan(&v); err != nil || v >= schemaVersion {
		return err
	}
	// The mode is kept in the file: no later open has to ask for it.
	if _, err := db.Exec("PRAGMA journal_mode = WAL"); err != nil {
		return err
	}
	if err := upgrade(db, v); err != nil {
		return err
	}
	return nil
}

// upgrade makes the tables that a database of version v lacks.
func upgrade(db *sql.DB, v int) error {
	t, err := db.Begin()
	if err != nil {
		return err
	}
	defer t.Rollback()
	var script strings.Builder
	if v == 0 {
		script.WriteString(schema)
		v = 1
	}
	for _, u := range upgrades[v-1:] {
		script.WriteString(u)
	}
	fmt.Fprintf(&script, "PRAGMA user_version = %d", schemaVersion)
	if _, err := t.Exec(script.String()); err != nil {
		return err
	}
	return t.Commit()
}

// openReadOnly opens a store that this process cannot write. SQLite needs its
// shared-memory file to read a database in WAL mode; where it cannot have one,
// a database without a log is read as immutable, and one with a log (its
// process was killed) from a copy.
func (s *Store) openReadOnly(path string, cause error) error {
	s.readOnly = "read-only file system"
	if cause == unix.EACCES {
		s.readOnly = "permission denied"
	}
	if _, err := os.Stat(path); err != nil {
		if os.IsNotExist(err) {
			return s.cannotWrite(s.readOnly)
		}
		return s.failed(s.root, err)
	}
	mode := "mode=ro&immutable=1"
	if fi, err := os.Stat(path + "-wal"); err == nil && fi.Size() > 0 {
		s.db = connect(path, "mode=ro")
		if v, err := s.version(); err == nil {
			return s.checkVersion(v, nil)
		}
		s.db.Close()
		if path, err = s.copyDatabase(path); err != nil {
			return err
		}
		mode = "mode=rw"
	}
	s.db = connect(path, mode)
	v, err := s.version()
	if err == nil && v == 0 {
		s.db.Close()
		return s.cannotWrite(s.readOnly)
	}
	if err == nil && v < schemaVersion { // its copy is read as a new one
		s.db.Close()
		if s.scrap == "" {
			if path, err = s.copyDatabase(path); err != nil {
				return err
			}
		}
		s.db = connect(path, "mode=rw")
		if err = upgrade(s.db, v); err == nil {
			v, err = s.version()
		}
	}
	return s.checkVersion(v, err)
}

func (s *Store) copyDatabase(path string) (string, error) {
	dir, err := os.MkdirTemp("", "strake-")
	if err != nil {
		return "", err
	}
	s.scrap = dir
	for _, suffix := range []string{"", "-wal"} {
		if err := copyFile(filepath.Join(dir, "strake.db"+suffix), path+suffix); err != nil {
			os.RemoveAll(dir)
			return "", err
		}
	}
	return filepath.Join(dir, "strake.db"), nil
}

func copyFile(dst, src string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// connect opens a pool of connections. In WAL mode synchronous=NORMAL keeps
// the database consistent through a power cut but may lose the last
// transactions; those that acknowledge something are synced by writeSynced.
func connect(path, mode string) *sql.DB {
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + mode +
		"&_txlock=immediate&_pragma=busy_timeout(60000)&_pragma=synchronous(NORMAL)"
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		panic(err) // only an unknown driver
	}
	db.SetMaxOpenConns(4)
	db.SetMaxIdleConns(4)
	return db
}
