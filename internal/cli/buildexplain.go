package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/pflag"

	"github.com/strake-project/strake/internal/build"
)

// explainFlags is --explain: why steps were not cached.
type explainFlags struct{ form string }

func (f *explainFlags) declare(fs *pflag.FlagSet) {
	fs.StringVar(&f.form, "explain", "", `Tell of each step that ran why it was not cached, compared to the last build of this Dockerfile ("text" on stderr, "json" on stdout)`)
	fs.Lookup("explain").NoOptDefVal = "text"
}

func (f *explainFlags) check(outs []*buildOutput) error {
	if f.form == "json" && slices.ContainsFunc(outs, func(o *buildOutput) bool { return o.dest == "-" }) {
		return errors.New("--explain=json and an output to stdout cannot go together")
	}
	if !slices.Contains([]string{"", "text", "json"}, f.form) {
		return fmt.Errorf("--explain=%s: text and json are known", f.form)
	}
	return nil
}

// traceID identifies "this Dockerfile" from build to build: by its place, its
// context's, the target and the platforms. The image's names do not count, for
// many people number them; only what has no place, on stdin, goes by them.
func (f *buildFlags) traceID(in *buildInput, path string) string {
	place := func(dir string) string {
		if abs, err := filepath.Abs(dir); err == nil {
			dir = abs
		}
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			dir = real
		}
		return dir
	}
	context, dockerfile := in.context, f.file
	if dir, ok := in.locals["context"]; ok {
		context = place(dir)
	}
	if dir, ok := in.locals["dockerfile"]; ok && dockerfile != "-" {
		dockerfile = filepath.Join(place(dir), in.filename)
	}
	if path == "-" || f.file == "-" {
		dockerfile = "- " + strings.Join(f.tags, ",")
	}
	if path == "-" {
		context = path
	}
	id, _ := json.Marshal([]any{context, dockerfile, f.target, f.platforms}) // strings always marshal
	return digest.FromBytes(id).Encoded()
}

// explainBuild prints what --explain asks for and keeps what the next build
// will be compared with. A build that went well does not fail for it.
func (a *App) explainBuild(ctx context.Context, f *explainFlags, engine *build.Engine, result *error) {
	if ctx.Err() != nil {
		return
	}
	if f.form != "" {
		all, total, err := engine.Explain(ctx)
		switch {
		case err != nil:
			fmt.Fprintf(a.Err, "WARNING: --explain: %v\n", err)
		case f.form == "json":
			a.explainJSON(all, total)
		default:
			a.explainText(all, total)
		}
	}
	if err := engine.Remember(ctx, *result != nil); err != nil {
		a.log.Warn("what this build was made of is not kept for --explain", "err", err)
	}
}

func (a *App) explainJSON(all []build.Explained, total int) {
	if all == nil {
		all = []build.Explained{}
	}
	enc := json.NewEncoder(a.Out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	_ = enc.Encode(struct {
		Ran   int               `json:"ran"`
		Total int               `json:"total"`
		Steps []build.Explained `json:"steps"`
	}{len(all), total, all}) // a closed stdout does not undo the build
}

func (a *App) explainText(all []build.Explained, total int) {
	if len(all) == 0 {
		fmt.Fprintf(a.Err, "Nothing ran: %s cached.\n", countSteps(total))
		return
	}
	fmt.Fprintf(a.Err, "Why %d of %s ran:\n", len(all), countSteps(total))
	for _, x := range all {
		fmt.Fprintf(a.Err, "  %s\n", x.Step)
		for _, r := range x.Reasons {
			for _, line := range reasonLines(&r) {
				fmt.Fprintf(a.Err, "    %s\n", line)
			}
		}
	}
}

func countSteps(n int) string {
	if n == 1 {
		return "1 step"
	}
	return fmt.Sprintf("%d steps", n)
}

// filesShown bounds the files that are listed of one step; json has them all.
const filesShown = 10

func reasonLines(r *build.Reason) []string {
	switch r.Kind {
	case build.FirstBuild:
		return []string{"the first build of this Dockerfile"}
	case build.NoCache:
		return []string{"--no-cache asks for it"}
	case build.NewStep:
		return []string{"the last build had no such step"}
	case build.Pruned:
		return []string{"nothing changed; its result is no longer in the cache"}
	case build.FailedLast:
		return []string{"nothing changed; it failed last time"}
	case build.Instruction:
		return []string{"the instruction changed, it was: " + oneLine(r.Was)}
	case build.Argument:
		return []string{"build argument " + r.Name + " changed"}
	case build.Environment:
		return []string{"environment variable " + r.Name + " changed"}
	case build.Setting:
		return []string{"its " + r.Name + " changed"}
	case build.Base:
		if !strings.Contains(r.Was, ":") || r.Now == r.Name {
			return []string{fmt.Sprintf("the base is %s, it was %s", r.Now, r.Was)}
		}
		return []string{fmt.Sprintf("base image %s changed: %s, it was %s", r.Name, short(r.Now), short(r.Was))}
	case build.Files:
		return fileLines(r)
	case build.Source:
		return []string{"what is at " + r.Name + " changed"}
	case build.Input:
		return []string{"an earlier step has another result: " + oneLine(r.Name)}
	}
	return []string{"the way it is run changed"}
}

func fileLines(r *build.Reason) []string {
	if len(r.Files) == 0 {
		return []string{"files of " + r.Name + " changed; which, is not known any more"}
	}
	var lines []string
	for _, f := range r.Files[:min(filesShown, len(r.Files))] {
		what := strings.Join(f.What, ", ")
		if what != "added" && what != "removed" {
			what += " changed"
		}
		lines = append(lines, fmt.Sprintf("%s: %q %s", r.Name, f.Path, what))
	}
	if n := len(r.Files) - filesShown; n > 0 {
		lines = append(lines, fmt.Sprintf("%s: … and %d more (--explain=json lists all)", r.Name, n))
	}
	return lines
}

// oneLine is text on one line, cut where it is long.
func oneLine(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if r := []rune(text); len(r) > 100 {
		text = string(r[:99]) + "…"
	}
	return text
}

func short(d string) string {
	if len(d) > 19 && strings.HasPrefix(d, "sha256:") {
		return d[:19]
	}
	return d
}
