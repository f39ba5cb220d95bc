package store

import (
	"time"

	"github.com/strake-project/strake/internal/oci"
)

// remembered is what only the database knows of images beside their names:
// pins, the log of operations with what undo can have back, and when images
// were used. Nothing of it is needed to read an image, so what was damaged is
// left out without a word.
type remembered struct {
	pins       [][2]string // repository, tag; '' and an image's ID
	operations []pastOperation
	changes    []pastChange
	waiting    map[oci.Digest][]int64 // operations
	used       map[oci.Digest]int64   // by image ID
	moved      map[nameEvent]int64    // a tag's move, and its operation
}

type pastOperation struct {
	id, began, at, undone int64
	command               string
}

type pastChange struct {
	n, op int64
	changed
}

type rowReader func(fn func(scan func(...any) error) error, table, columns, key string)

// readLog reads what the tables say of all that.
func (o *salvaged) readLog(rows rowReader) {
	m := remembered{waiting: map[oci.Digest][]int64{}, used: map[oci.Digest]int64{}, moved: map[nameEvent]int64{}}
	rows(func(scan func(...any) error) error {
		var p [2]string
		err := scan(&p[0], &p[1])
		m.pins = append(m.pins, p)
		return err
	}, "pin", "repo, tag", "repo DESC, tag DESC")
	rows(func(scan func(...any) error) error {
		var p pastOperation
		err := scan(&p.id, &p.command, &p.began, &p.at, &p.undone)
		m.operations = append(m.operations, p)
		return err
	}, "operation", "id, command, began, at, undone", "id DESC")
	rows(func(scan func(...any) error) error {
		var c pastChange
		err := scan(&c.n, &c.op, &c.kind, &c.repo, &c.tag, &c.old, &c.now)
		m.changes = append(m.changes, c)
		return err
	}, "change", "n, op, kind, repo, tag, old, new", "n DESC")
	rows(func(scan func(...any) error) error {
		var d oci.Digest
		var op int64
		err := scan(&d, &op)
		m.waiting[d] = append(m.waiting[d], op)
		return err
	}, "waiting", "digest, op", "digest DESC, op DESC")
	rows(func(scan func(...any) error) error {
		var d oci.Digest
		var at int64
		err := scan(&d, &at)
		m.used[d] = at
		return err
	}, "image", "id, used", "id DESC")
	rows(func(scan func(...any) error) error {
		var e nameEvent
		var op int64
		err := scan(&e.repo, &e.tag, &e.digest, &e.at, &op)
		m.moved[e] = op
		return err
	}, "taglog", "repo, tag, digest, at, op", "n DESC")
	o.remembered = m
}

// refillLog writes what was remembered, where it fits what was found on the
// disk: a pin has its tag or image, a change its operation. What waited waits
// again only if nothing names it, so that no image is hidden by a damaged row
// of another.
func (t *tx) refillLog(m *remembered) error {
	now := time.Now().UnixNano()
	for _, p := range m.pins {
		if _, err := t.Exec(`INSERT OR IGNORE INTO pin(repo, tag) SELECT ?1, ?2
			WHERE EXISTS(SELECT 1 FROM tag WHERE repo = ?1 AND tag = ?2) OR ?1 = '' AND EXISTS(SELECT 1 FROM image WHERE id = ?2)`, p[0], p[1]); err != nil {
			return err
		}
	}
	for _, o := range m.operations {
		if o.id <= 0 || o.at > now || o.began > now {
			continue
		}
		if _, err := t.Exec("INSERT OR IGNORE INTO operation(id, command, began, at, undone) VALUES(?,?,?,?,?)", o.id, o.command, o.began, o.at, o.undone); err != nil {
			return err
		}
	}
	for _, c := range m.changes {
		if !c.valid() {
			continue
		}
		if _, err := t.Exec(`INSERT OR IGNORE INTO change(n, op, kind, repo, tag, old, new)
			SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE EXISTS(SELECT 1 FROM operation WHERE id = ?2)`,
			c.n, c.op, c.kind, c.repo, c.tag, c.old, c.now); err != nil {
			return err
		}
	}
	named, err := t.digests(`WITH RECURSIVE named(d) AS (SELECT digest FROM tag UNION SELECT digest FROM repodigest UNION SELECT digest FROM record_hold
		UNION SELECT e.child FROM named JOIN edge e ON e.parent = named.d AND e.kind IN (2, 3)) SELECT d FROM named`)
	if err != nil {
		return err
	}
	for _, d := range named {
		delete(m.waiting, d)
	}
	for d, ops := range m.waiting {
		for _, op := range ops {
			if _, err := t.Exec(`INSERT OR IGNORE INTO waiting(digest, op) SELECT ?1, ?2
				WHERE EXISTS(SELECT 1 FROM change WHERE op = ?2 AND kind = ?3 AND old = ?1) AND EXISTS(SELECT 1 FROM manifest WHERE digest = ?1)`,
				d, op, changeImage); err != nil {
				return err
			}
		}
	}
	if _, err := t.Exec("UPDATE manifest SET gone = 1 WHERE digest IN (SELECT digest FROM waiting)"); err != nil {
		return err
	}
	for d, at := range m.used {
		if at <= 0 || at > now {
			continue
		}
		if _, err := t.Exec("UPDATE image SET used = ? WHERE id = ?", at, d); err != nil {
			return err
		}
	}
	for e, op := range m.moved {
		if op == 0 {
			continue
		}
		if _, err := t.Exec("UPDATE taglog SET op = ? WHERE repo = ? AND tag = ? AND digest = ? AND at = ?", op, e.repo, e.tag, e.digest, e.at); err != nil {
			return err
		}
	}
	return nil
}

// valid refuses what a damaged row may hold.
func (c *pastChange) valid() bool {
	digests := func(list ...oci.Digest) bool {
		for _, d := range list {
			if d != "" && checkDigest(d) != nil {
				return false
			}
		}
		return true
	}
	e := nameEvent{repo: c.repo, tag: c.tag}
	switch c.kind {
	case changeTag:
		return c.tag != "" && e.valid() && digests(c.old, c.now)
	case changeDigest:
		e.digest = max(c.old, c.now)
		return c.tag == "" && e.valid() && digests(c.old, c.now)
	case changeImage:
		return c.repo+c.tag == "" && digests(c.old, c.now)
	case changePin:
		return c.repo == "" && checkDigest(oci.Digest(c.tag)) == nil || c.tag != "" && e.valid()
	}
	return false
}
