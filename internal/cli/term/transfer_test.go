package term

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

func layerEvent(k content.EventKind, hex string, current int64) content.Event {
	return content.Event{Kind: k, Current: current, Descriptor: oci.Descriptor{
		MediaType: oci.MediaTypeLayerGzip, Size: 100, Digest: oci.Digest("sha256:" + strings.Repeat(hex, 32)),
	}}
}

// TestTransferLines: where lines only grow there is one for each change of
// state, none for bytes, none for configs.
func TestTransferLines(t *testing.T) {
	mounted := layerEvent(content.Mounted, "cc", 100)
	mounted.From = ref.Ref{Domain: "docker.io", Path: "library/base"}
	packing := layerEvent(content.Packing, "dd", 0)
	packed := layerEvent(content.Started, "ee", 0)
	packed.DiffID = packing.Descriptor.Digest
	config := layerEvent(content.Started, "ff", 0)
	config.Descriptor.MediaType = oci.MediaTypeConfig
	events := []content.Event{
		config,
		layerEvent(content.Started, "aa", 0), layerEvent(content.Progressed, "aa", 50), layerEvent(content.Progressed, "aa", 90),
		layerEvent(content.Exists, "bb", 100), mounted, layerEvent(content.Done, "aa", 100), packing, packed,
	}
	for dir, want := range map[Direction]string{
		Pull: "aaaaaaaaaaaa: Pulling fs layer\nbbbbbbbbbbbb: Already exists\ncccccccccccc: Mounted from library/base\naaaaaaaaaaaa: Pull complete\ndddddddddddd: Pulling fs layer\n",
		Push: "aaaaaaaaaaaa: Preparing\nbbbbbbbbbbbb: Layer already exists\ncccccccccccc: Mounted from library/base\naaaaaaaaaaaa: Pushed\ndddddddddddd: Preparing\n",
	} {
		var out strings.Builder
		p := NewTransferPrinter(NewOut(&out), dir)
		for _, e := range events {
			p.Event(e)
		}
		p.Close()
		if d := cmp.Diff(want, out.String()); d != "" {
			t.Error(d)
		}
	}
}

// TestTransferBars draws each layer's line in place.
func TestTransferBars(t *testing.T) {
	var out strings.Builder
	p := NewTransferPrinter(NewOut(&out), Pull)
	p.tty = true
	p.Event(layerEvent(content.Started, "aa", 0))
	p.Event(layerEvent(content.Progressed, "aa", 50))
	p.Event(layerEvent(content.Done, "aa", 100))
	p.Close()
	got := out.String()
	for _, want := range []string{
		"\raaaaaaaaaaaa: Pulling fs layer",
		"\x1b[1A\raaaaaaaaaaaa: Downloading [",
		"=>", "50B/100B",
		"\x1b[1A\raaaaaaaaaaaa: Pull complete\x1b[K\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q lacks %q", got, want)
		}
	}
	for _, line := range strings.Split(got, "\n") {
		if plain := printable(line); len(plain) > 80 {
			t.Errorf("line %q is wider than the screen", plain)
		}
	}
}
