package term

import (
	"strings"
	"testing"
)

type testRow struct{ ID, Name string }

func (r *testRow) Label(key string) string { return key + "!" }

// TestPrintRows holds tables and templates against docker's bytes.
func TestPrintRows(t *testing.T) {
	header := Header{"ID": "IMAGE ID", "Name": "NAME"}
	rows := []*testRow{{"4f1d2c3b4a59", "<a>"}, {"1", "name"}}
	for _, c := range []struct{ why, format, want string }{
		{"columns are three spaces apart, at least ten wide, the last one not padded", "table {{.ID}}\t{{.Name}}", "IMAGE ID       NAME\n4f1d2c3b4a59   <a>\n1              name\n"},
		{"an escaped tab is a tab", `table {{.Name}}\t{{.ID}}`, "NAME      IMAGE ID\n<a>       4f1d2c3b4a59\nname      1\n"},
		{"functions leave titles alone", "table {{upper .Name}}", "NAME\n<A>\nNAME\n"},
		{"a label's title is its last word", `table {{.Label "com.example.my-key"}}`, "my key\ncom.example.my-key!\ncom.example.my-key!\n"},
		{"json is an object a line, escaped as docker's", "json", `{"ID":"4f1d2c3b4a59","Name":"\u003ca\u003e"}` + "\n" + `{"ID":"1","Name":"name"}` + "\n"},
		{"the function json does not escape", "{{json .Name}}", "\"<a>\"\n\"name\"\n"},
		{"a template has no titles", "{{.Name}} {{truncate .ID 4}}", "<a> 4f1d\nname 1\n"},
	} {
		var out strings.Builder
		if err := PrintRows(&out, c.format, header, rows); err != nil {
			t.Errorf("%s: %v", c.why, err)
		}
		if out.String() != c.want {
			t.Errorf("%s: got\n%swant\n%s", c.why, out.String(), c.want)
		}
	}
	var out strings.Builder
	if err := PrintRows(&out, "{{.ID}} {{.Nope}}", header, rows); err == nil || out.Len() > 0 {
		t.Errorf("a wrong field: err %v, printed %q", err, out.String())
	}
}

// TestObjectFormat: a template sees Go's names and, failing that, JSON's.
func TestObjectFormat(t *testing.T) {
	type object struct {
		ID   string `json:"Id"`
		Size int64
		List []string
	}
	objects := []any{&object{ID: "x", Size: 12345678901}}
	for format, want := range map[string]string{
		"":                          "[\n    {\n        \"Id\": \"x\",\n        \"Size\": 12345678901,\n        \"List\": null\n    }\n]\n",
		"json":                      `[{"Id":"x","Size":12345678901,"List":null}]` + "\n",
		"{{.ID}} {{.List}}":         "x []\n",
		"{{.Id}} {{.Size}}":         "x 12345678901\n",
		"{{if gt .Size 5}}y{{end}}": "y\n",
	} {
		f, err := ParseObjectFormat(format)
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		if err := f.Print(&out, objects); err != nil || out.String() != want {
			t.Errorf("%q: %q, %v; want %q", format, out.String(), err, want)
		}
	}
	f, err := ParseObjectFormat("{{.Nope}}")
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := f.Print(&out, objects); err == nil || !strings.Contains(err.Error(), `map has no entry for key "Nope"`) || out.String() != "\n" {
		t.Errorf("a wrong field: err %v, printed %q", err, out.String())
	}
}
