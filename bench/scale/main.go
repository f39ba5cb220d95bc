// Scale fills a store with many small images, through the store itself: for
// bench/scale.sh. Each image has a manifest, a config, three layers of its own
// and two of a base that a hundred images share; ten in a hundred have two
// names.
//
// usage: go run ./bench/scale DIR [IMAGES]
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/ref"
)

func main() {
	if len(os.Args) < 2 {
		log.Fatal("usage: scale DIR [IMAGES]")
	}
	n := 10000
	if len(os.Args) > 2 {
		var err error
		if n, err = strconv.Atoi(os.Args[2]); err != nil {
			log.Fatal(err)
		}
	}
	if err := fill(os.Args[1], n); err != nil {
		log.Fatal(err)
	}
}

func fill(dir string, n int) error {
	s, err := store.Open(dir, store.Options{Command: "scale"})
	if err != nil {
		return err
	}
	defer s.Close()
	var base []oci.Descriptor
	for i := range n {
		ctx, release, err := s.Lease(store.WithOperation(context.Background(), "scale"))
		if err != nil {
			return err
		}
		if i%100 == 0 {
			base = base[:0]
			for l := range 2 {
				d, err := addLayer(ctx, s, fmt.Sprintf("base/%d/%d", i/100, l))
				if err != nil {
					return err
				}
				base = append(base, d)
			}
		}
		if err := addImage(ctx, s, i, base); err != nil {
			return err
		}
		release()
	}
	return nil
}

func addLayer(ctx context.Context, s *store.Store, name string) (oci.Descriptor, error) {
	w, err := s.NewLayer(ctx)
	if err != nil {
		return oci.Descriptor{}, err
	}
	defer w.Abort()
	e := layer.Entry{Path: "file", Type: layer.Regular, Mode: 0o644, Size: int64(len(name)), ModTime: time.Unix(1700000000, 0)}
	if err := w.Write(e, strings.NewReader(name)); err != nil {
		return oci.Descriptor{}, err
	}
	toc, err := w.Commit(ctx)
	if err != nil {
		return oci.Descriptor{}, err
	}
	return oci.Descriptor{MediaType: oci.MediaTypeLayer, Digest: toc.DiffID, Size: toc.Size}, nil
}

func addImage(ctx context.Context, s *store.Store, i int, base []oci.Descriptor) error {
	layers := base[:len(base):len(base)]
	for l := range 3 {
		d, err := addLayer(ctx, s, fmt.Sprintf("own/%d/%d", i, l))
		if err != nil {
			return err
		}
		layers = append(layers, d)
	}
	var ids []oci.Digest
	for _, l := range layers {
		ids = append(ids, l.Digest)
	}
	put := func(mediaType string, v any) (oci.Descriptor, error) {
		b, err := json.Marshal(v)
		if err != nil {
			return oci.Descriptor{}, err
		}
		d := oci.DescriptorOf(mediaType, b)
		return d, s.Put(ctx, d, strings.NewReader(string(b)))
	}
	config, err := put(oci.MediaTypeConfig, map[string]any{
		"architecture": "amd64", "os": "linux", "created": time.Unix(1700000000+int64(i), 0).UTC().Format(time.RFC3339),
		"config": map[string]any{"Labels": map[string]string{"number": strconv.Itoa(i)}, "Cmd": []string{"sh"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": ids},
	})
	if err != nil {
		return err
	}
	manifest, err := put(oci.MediaTypeManifest, map[string]any{
		"schemaVersion": 2, "mediaType": oci.MediaTypeManifest, "config": config, "layers": layers,
	})
	if err != nil {
		return err
	}
	names := []string{fmt.Sprintf("team%d/app%d:v%d", i%10, i%100, i)}
	if i%10 == 0 {
		names = append(names, fmt.Sprintf("other%d:v%d", i%7, i))
	}
	for _, name := range names {
		r, err := ref.ParseImage(name)
		if err != nil {
			return err
		}
		if err := s.Tag(ctx, r, manifest); err != nil {
			return err
		}
	}
	return nil
}
