package store

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

// manifest is what the store reads out of a manifest or index.
type manifest struct {
	MediaType    string            `json:"mediaType"`
	ArtifactType string            `json:"artifactType"`
	Config       oci.Descriptor    `json:"config"`
	Layers       []oci.Descriptor  `json:"layers"`
	Subject      *oci.Descriptor   `json:"subject"`
	Annotations  map[string]string `json:"annotations"`
}

// putManifest stores a manifest or index with its facts.
func (s *Store) putManifest(ctx context.Context, d oci.Descriptor, r io.Reader) error {
	if err := checkDigest(d.Digest); err != nil {
		return err
	}
	if s.readOnly != "" {
		return s.cannotWrite(s.readOnly)
	}
	known := false
	err := s.ask(ctx, func(t *tx) (err error) {
		known, err = t.exists("SELECT 1 FROM manifest WHERE digest = ?", d.Digest)
		return err
	})
	if err != nil {
		return err
	}
	if known { // but are its bytes?
		if known, err = s.Has(ctx, d); err != nil || known {
			return err
		}
	}
	body, err := oci.ReadAll(r, d)
	if err != nil {
		return err
	}
	m, children, err := parseManifest(d.MediaType, body)
	if err != nil {
		return err
	}
	a, err := s.newAside()
	if err != nil {
		return err
	}
	defer a.discard()
	if _, err := a.Write(body); err != nil {
		return s.failed(a.path, err)
	}
	return s.admit(ctx, a, d, func(t *tx) error { return s.learn(t, d, m, children) })
}

// parseManifest reads a manifest or index and what it names.
func parseManifest(mediaType string, body []byte) (*manifest, []oci.Descriptor, error) {
	children, err := oci.Children(mediaType, body)
	if err != nil {
		return nil, nil, err
	}
	m := new(manifest)
	if err := json.Unmarshal(body, m); err != nil {
		return nil, nil, fmt.Errorf("manifest: %v: %w", err, oci.ErrInvalid)
	}
	return m, children, nil
}

// learn records the facts and edges of a manifest or index.
func (s *Store) learn(t *tx, d oci.Descriptor, m *manifest, children []oci.Descriptor) error {
	// The blob may have come in before without a media type.
	if _, err := t.Exec("UPDATE blob SET mediatype = ? WHERE digest = ? AND mediatype <> ?", d.MediaType, d.Digest, d.MediaType); err != nil {
		return err
	}
	var config, image, subject, annotations, kind = "", "", "", "", edgeImage
	if oci.IsManifest(d.MediaType) {
		config, image, kind = string(m.Config.Digest), string(m.Config.Digest), edgeBlob
	}
	if m.Subject != nil && m.Subject.Digest.Validate() == nil {
		subject = string(m.Subject.Digest)
		if err := t.edge(m.Subject.Digest, d.Digest, edgeSubject, 0); err != nil {
			return err
		}
	}
	artifactType := m.ArtifactType
	if artifactType == "" {
		artifactType = m.Config.MediaType
	}
	if len(m.Annotations) > 0 {
		b, err := json.Marshal(m.Annotations)
		if err != nil {
			return err
		}
		annotations = string(b)
	}
	_, err := t.Exec(`INSERT INTO manifest(digest, mediatype, size, config, image, subject, artifacttype, annotations, named, added)
		VALUES(?,?,?,?,?,?,?,?,0,?) ON CONFLICT(digest) DO UPDATE SET gone = 0, added = CASE gone WHEN 1 THEN excluded.added ELSE added END`,
		d.Digest, d.MediaType, d.Size, config, image, subject, artifactType, annotations, time.Now().UnixNano())
	if err != nil {
		return err
	}
	// What was removed and is put again waits no more.
	if _, err := t.Exec("DELETE FROM waiting WHERE digest = ?", d.Digest); err != nil {
		return err
	}
	for i, c := range children {
		if err := t.edge(d.Digest, c.Digest, kind, i); err != nil {
			return err
		}
	}
	if kind == edgeImage {
		return nil
	}
	if err := t.putBack(d.Digest); err != nil {
		return err
	}
	return s.learnImage(t, d, m)
}

func (t *tx) edge(parent, child oci.Digest, kind, ord int) error {
	_, err := t.Exec("INSERT OR IGNORE INTO edge(parent, child, kind, ord) VALUES(?,?,?,?)", parent, child, kind, ord)
	return err
}

// config is what a list says of an image.
type config struct {
	Created string `json:"created"`
	oci.Platform
	Config struct {
		Labels map[string]string `json:"Labels"`
	} `json:"config"`
	RootFS struct {
		Type    string       `json:"type"`
		DiffIDs []oci.Digest `json:"diff_ids"`
	} `json:"rootfs"`
}

func isConfig(mediaType string) bool {
	return mediaType == oci.MediaTypeConfig || mediaType == oci.MediaTypeDockerConfig
}

// parseConfig returns nil where b is no image's config: an artifact may have
// anything there, and it must not break a list.
func parseConfig(b []byte) *config {
	var c config
	if json.Unmarshal(b, &c) != nil || c.RootFS.Type != "layers" {
		return nil
	}
	for _, d := range c.RootFS.DiffIDs {
		if checkDigest(d) != nil {
			return nil
		}
	}
	return &c
}

// learnImage records the facts of the image that manifest d is of. Where its
// config is not here yet, blobArrived calls it again.
func (s *Store) learnImage(t *tx, d oci.Descriptor, m *manifest) error {
	if isConfig(m.Config.MediaType) {
		there, err := t.exists("SELECT 1 FROM blob WHERE digest = ? AND size <= ?", m.Config.Digest, oci.MaxManifestSize)
		if err != nil || !there {
			return err
		}
		b, err := os.ReadFile(s.blobPath(m.Config.Digest))
		if err != nil {
			return nil // whoever reads it finds that it is gone, and says so
		}
		if c := parseConfig(b); c != nil {
			return t.insertImage(m, c)
		}
	}
	size := int64(0)
	for _, l := range m.Layers {
		size += l.Size
	}
	if _, err := t.Exec("UPDATE manifest SET image = ? WHERE digest = ?", d.Digest, d.Digest); err != nil {
		return err
	}
	_, err := t.Exec(`INSERT OR IGNORE INTO image(id, artifact, created, os, arch, variant, osversion, labels, layers, size)
		VALUES(?,1,0,'','','','','','',?)`, d.Digest, size)
	return err
}

func (t *tx) insertImage(m *manifest, c *config) error {
	var created int64
	// A time that is none, or that nanoseconds cannot say, breaks no list.
	if at, err := time.Parse(time.RFC3339Nano, c.Created); err == nil && at.Year() > 1677 && at.Year() < 2262 {
		created = at.UnixNano()
	}
	labels := ""
	if len(c.Config.Labels) > 0 {
		b, err := json.Marshal(c.Config.Labels)
		if err != nil {
			return err
		}
		labels = string(b)
	}
	ids := make([]string, len(c.RootFS.DiffIDs))
	for i, d := range c.RootFS.DiffIDs {
		ids[i] = string(d)
	}
	_, err := t.Exec(`INSERT OR IGNORE INTO image(id, artifact, created, os, arch, variant, osversion, labels, layers, size)
		VALUES(?,0,?,?,?,?,?,?,?,0)`, m.Config.Digest, created,
		c.OS, c.Architecture, c.Variant, c.OSVersion, labels, strings.Join(ids, " "))
	if err != nil {
		return err
	}
	if len(ids) == len(m.Layers) { // else which is which is unknown
		for i, diffID := range c.RootFS.DiffIDs {
			if err := t.claimLayer(diffID, m.Layers[i]); err != nil {
				return err
			}
		}
	}
	_, err = t.Exec(weighImages+" AND id = ?", m.Config.Digest)
	return err
}

// claimLayer notes that a manifest and its config say that l is the layer
// diffID. Nobody has checked it: it may keep content alive and be tried, no
// more.
func (t *tx) claimLayer(diffID oci.Digest, l oci.Descriptor) error {
	var bytes int64
	if err := t.QueryRow("SELECT coalesce((SELECT plain FROM blob WHERE digest = ?), (SELECT plain FROM blob WHERE digest = ?), ?)",
		diffID, l.Digest, l.Size).Scan(&bytes); err != nil {
		return err
	}
	_, err := t.Exec("INSERT OR IGNORE INTO layer(diffid, size, bytes, toc, tree, boot) VALUES(?,-1,?,0,0,'')", diffID, bytes)
	if err != nil || diffID == l.Digest {
		return err
	}
	return t.packed(diffID, l.Digest, packingOf(l.MediaType), false)
}

// packed notes that blob is the layer diffID, packed.
func (t *tx) packed(diffID, blob oci.Digest, p layer.Packing, verified bool) error {
	_, err := t.Exec(`INSERT INTO packed(diffid, digest, packing, verified) VALUES(?,?,?,?)
		ON CONFLICT(diffid, digest) DO UPDATE SET verified = max(verified, excluded.verified),
			packing = CASE WHEN excluded.verified THEN excluded.packing ELSE packing END`, diffID, blob, string(p), verified)
	if err != nil {
		return err
	}
	if err := t.edge(blob, diffID, edgeForm, 0); err != nil {
		return err
	}
	return t.edge(diffID, blob, edgeForm, 0)
}

func packingOf(mediaType string) layer.Packing {
	switch {
	case strings.HasSuffix(mediaType, "gzip"):
		return layer.Gzip
	case strings.HasSuffix(mediaType, "zstd"):
		return layer.Zstd
	}
	return layer.Plain
}

// blobArrived completes what was learnt before the blob d was here: usually
// nothing, since children are put first.
func (s *Store) blobArrived(t *tx, d oci.Digest, plain int64) error {
	if _, err := t.Exec(`UPDATE layer SET bytes = ? WHERE toc = 0 AND diffid IN
		(SELECT diffid FROM packed WHERE digest = ? UNION SELECT ?)`, plain, d, d); err != nil {
		return err
	}
	waiting, err := t.digests(`SELECT digest FROM manifest m WHERE config = ?
		AND NOT EXISTS(SELECT 1 FROM image WHERE id = m.image)`, d)
	if err != nil {
		return err
	}
	for _, w := range waiting {
		var desc = oci.Descriptor{Digest: w}
		if err := t.QueryRow("SELECT mediatype, size FROM manifest WHERE digest = ?", w).Scan(&desc.MediaType, &desc.Size); err != nil {
			return err
		}
		f, err := os.Open(s.blobPath(w))
		if err != nil {
			continue // it is missing itself; putting it again learns this too
		}
		body, err := oci.ReadAll(f, desc)
		f.Close()
		if err != nil {
			continue
		}
		m, _, err := parseManifest(desc.MediaType, body)
		if err != nil {
			continue
		}
		if err := s.learnImage(t, desc, m); err != nil {
			return err
		}
	}
	return nil
}

// Referrers implements content.ReferrerLister.
func (s *Store) Referrers(ctx context.Context, d oci.Descriptor, artifactType string) ([]oci.Descriptor, error) {
	var all []oci.Descriptor
	err := s.read(ctx, func(t *tx) error {
		return t.each(func(scan func(...any) error) error {
			var r oci.Descriptor
			var annotations string
			if err := scan(&r.Digest, &r.MediaType, &r.Size, &r.ArtifactType, &annotations); err != nil {
				return err
			}
			if annotations != "" {
				if err := json.Unmarshal([]byte(annotations), &r.Annotations); err != nil {
					return err
				}
			}
			all = append(all, r)
			return nil
		}, `SELECT m.digest, m.mediatype, m.size, m.artifacttype, m.annotations FROM manifest m JOIN blob b ON b.digest = m.digest
			WHERE m.gone = 0 AND m.subject = ? AND m.subject <> '' AND (? = '' OR m.artifacttype = ?) ORDER BY m.added, m.digest`,
			d.Digest, artifactType, artifactType)
	})
	return all, err
}
