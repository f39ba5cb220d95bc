package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/client"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/build/frontend"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// imageID is one platform's config's digest, of several their index's.
func imageID(out *build.Exported, several bool) oci.Digest {
	switch {
	case out == nil:
		return ""
	case several:
		return out.Target.Digest
	}
	return out.ID
}

// forgetImageID removes an older build's file, lest it is taken for this one's
// where this one fails. A device or a pipe stays.
func (f *buildFlags) forgetImageID() error {
	fi, err := os.Lstat(f.iidFile)
	if f.iidFile == "" || err != nil || !fi.Mode().IsRegular() {
		return nil
	}
	if err := os.Remove(f.iidFile); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("removing image ID file: %w", err)
	}
	return nil
}

// writeResult writes the files that --iidfile and --metadata-file name. more is
// what the metadata has beside the image.
func (f *buildFlags) writeResult(out *build.Exported, names []ref.Ref, several bool, more map[string]any) error {
	if f.iidFile != "" {
		if err := os.WriteFile(f.iidFile, []byte(imageID(out, several)), 0o666); err != nil {
			return err
		}
	}
	if f.metadataFile == "" {
		return nil
	}
	md := map[string]any{"buildx.build.ref": fmt.Sprintf("strake/%d", time.Now().UnixNano())}
	maps.Copy(md, more)
	if out != nil {
		md["containerimage.descriptor"] = out.Target
		md["containerimage.digest"] = out.Target.Digest
		if !oci.IsIndex(out.Target.MediaType) {
			md["containerimage.config.digest"] = out.ID
		}
		if len(names) > 0 {
			all := make([]string, len(names))
			for i, n := range names {
				all[i] = n.String()
			}
			md["image.name"] = strings.Join(all, ",")
		}
	}
	b, err := json.MarshalIndent(md, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(f.metadataFile, 0o666, func(w io.Writer) error {
		_, err := w.Write(append(b, '\n'))
		return err
	})
}

// metadata is what --metadata-file tells of a build on this machine beside its
// image: with buildx's variables, and their values, for how much.
func (j *buildJob) metadata(engine *build.Engine, res *frontend.Result, warnings []*build.Warning) (map[string]any, error) {
	if j.metadataFile == "" {
		return nil, nil
	}
	md := map[string]any{}
	if on, _ := strconv.ParseBool(os.Getenv("BUILDX_METADATA_WARNINGS")); on && len(warnings) > 0 {
		list := make([]client.VertexWarning, len(warnings))
		for i, w := range warnings {
			list[i] = client.VertexWarning{Vertex: w.Vertex, Level: w.Level, Short: []byte(w.Short), URL: w.URL, SourceInfo: w.Source, Range: w.Range}
			for _, d := range w.Detail {
				list[i].Detail = append(list[i].Detail, []byte(d))
			}
			if w.Source != nil { // the graph that the file came from is nobody's
				list[i].SourceInfo = w.Source.CloneVT()
				list[i].SourceInfo.Definition = nil
			}
		}
		md["buildx.build.warnings"] = list
	}
	mode := os.Getenv("BUILDX_METADATA_PROVENANCE")
	if on, err := strconv.ParseBool(mode); mode == "disabled" || err == nil && !on {
		return md, nil
	}
	p := build.Provenance{Options: j.opts, Locals: slices.Collect(maps.Keys(j.input.locals)), Dockerfile: frontend.Version()}
	for _, img := range res.Images {
		key := "buildx.build.provenance"
		if res.Index {
			key += "/" + platforms.FormatAll(img.Platform)
		}
		md[key] = engine.BuildProvenance(img, p, mode == "max")
	}
	return md, nil
}
