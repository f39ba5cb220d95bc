package term

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/strake-project/strake/internal/build"
)

// warn keeps w for the summary and tells whether it is news: each platform of
// a build finds the same.
func (p *BuildPrinter) warn(w *build.Warning) bool {
	for _, have := range p.warned {
		if have.Short == w.Short && have.File == w.File && have.Line == w.Line {
			return false
		}
	}
	p.warned = append(p.warned, w)
	return true
}

// summary prints, as docker does below the progress, what the Dockerfile's
// checks found.
func (p *BuildPrinter) summary() {
	if len(p.warned) == 0 {
		return
	}
	switch p.view.(type) {
	case quietView, *rawView:
		return
	}
	head := "1 warning found"
	if n := len(p.warned); n > 1 {
		head = fmt.Sprintf("%d warnings found", n)
	}
	if !p.Expand {
		head += fmt.Sprintf(" (use %s --debug to expand)", cmp.Or(p.Program, "strake"))
	}
	if head += ":"; p.out.Colors() {
		head = "\x1b[33m" + head + "\x1b[0m"
	}
	var b strings.Builder
	b.WriteString("\n " + head + "\n")
	for _, w := range p.warned {
		b.WriteString(" - " + w.Short + "\n")
		if p.Expand {
			b.WriteString(expanded(w))
		}
	}
	// A closed stderr must not stop a build.
	_, _ = io.WriteString(p.out, b.String())
}

// expanded is what there is to know of a warning beside its line.
func expanded(w *build.Warning) string {
	var b strings.Builder
	for _, d := range w.Detail {
		b.WriteString(d + "\n")
	}
	if w.URL != "" {
		b.WriteString("More info: " + w.URL + "\n")
	}
	if w.File != "" && w.Line > 0 {
		fmt.Fprintf(&b, "%s:%d\n", w.File, w.Line)
	}
	return b.String() + "\n"
}
