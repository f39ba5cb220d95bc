package build

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/strake-project/strake/internal/oci"
)

func at(sec int64) *time.Time { t := time.Unix(sec, 0).UTC(); return &t }

func TestFinishHistory(t *testing.T) {
	layer := func(sec int64, by string) Layer { return Layer{Created: time.Unix(sec, 0).UTC(), CreatedBy: by} }
	for _, c := range []struct {
		what    string
		history []oci.History
		layers  []Layer
		want    []oci.History
	}{
		{
			"a layer's line has its layer's time",
			[]oci.History{{CreatedBy: "RUN a"}, {CreatedBy: "RUN b"}},
			[]Layer{layer(1, ""), layer(2, "")},
			[]oci.History{{CreatedBy: "RUN a", Created: at(1)}, {CreatedBy: "RUN b", Created: at(2)}},
		},
		{
			"a base's line keeps its own time",
			[]oci.History{{CreatedBy: "base", Created: at(5)}, {CreatedBy: "RUN"}},
			[]Layer{layer(1, ""), layer(9, "")},
			[]oci.History{{CreatedBy: "base", Created: at(5)}, {CreatedBy: "RUN", Created: at(9)}},
		},
		{
			"a line without a layer has the time of the first new layer, then of the one before it",
			[]oci.History{{CreatedBy: "base", Created: at(5)}, {CreatedBy: "ENV", EmptyLayer: true}, {CreatedBy: "RUN"}, {CreatedBy: "CMD", EmptyLayer: true}},
			[]Layer{layer(1, ""), layer(9, "")},
			[]oci.History{{CreatedBy: "base", Created: at(5)}, {CreatedBy: "ENV", EmptyLayer: true, Created: at(9)}, {CreatedBy: "RUN", Created: at(9)}, {CreatedBy: "CMD", EmptyLayer: true, Created: at(9)}},
		},
		{
			"layers that the history does not know get lines",
			[]oci.History{{CreatedBy: "a"}},
			[]Layer{layer(1, "x"), layer(2, "merge")},
			[]oci.History{{CreatedBy: "a", Created: at(1)}, {CreatedBy: "merge", Created: at(2), Comment: "buildkit.exporter.image.v0"}},
		},
		{
			"lines that claim a layer too many become empty",
			[]oci.History{{CreatedBy: "a"}, {CreatedBy: "b"}},
			[]Layer{layer(1, "")},
			[]oci.History{{CreatedBy: "a", Created: at(1)}, {CreatedBy: "b", EmptyLayer: true, Created: at(1)}},
		},
	} {
		if d := cmp.Diff(c.want, finishHistory(c.history, c.layers)); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.what, d)
		}
	}
}

func TestFinishConfigKeepsUnknownFieldsAndClamps(t *testing.T) {
	b, err := finishConfig(Image{
		Config:     []byte(`{"os":"linux","architecture":"amd64","x-unknown":{"a":1},"history":[{"created":"1970-01-01T00:01:40Z","created_by":"base"},{"created_by":"RUN"}]}`),
		BaseConfig: []byte(`{"history":[{"created":"1970-01-01T00:01:40Z","created_by":"base"}]}`),
		Snapshot:   &Snapshot{Layers: []Layer{{DiffID: "sha256:a"}, {DiffID: "sha256:b", Created: time.Unix(500, 0).UTC()}}},
		Epoch:      at(50),
	})
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Unknown json.RawMessage `json:"x-unknown"`
		RootFS  struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
		History []oci.History `json:"history"`
		Created *time.Time    `json:"created"`
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if string(got.Unknown) != `{"a":1}` {
		t.Errorf("a field that strake does not know became %s", got.Unknown)
	}
	if len(got.RootFS.DiffIDs) != 2 {
		t.Errorf("diffIDs: %v", got.RootFS.DiffIDs)
	}
	if !got.History[0].Created.Equal(*at(100)) {
		t.Errorf("SOURCE_DATE_EPOCH touched the base's history: %v (buildkit#4614)", got.History[0].Created)
	}
	if !got.History[1].Created.Equal(*at(50)) || !got.Created.Equal(*at(50)) {
		t.Errorf("times after SOURCE_DATE_EPOCH: history %v, image %v", got.History[1].Created, got.Created)
	}
}
