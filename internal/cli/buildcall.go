package cli

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/subrequests/lint"
)

// buildCall is what --call asks of the Dockerfile instead of an image.
type buildCall struct {
	request      string // of the frontend; "" is a build
	format       string // "json" or as text
	ignoreStatus bool   // a check that found something ends with 0
}

// parseCall reads --call and --check: NAME[,format=json|text][,ignorestatus=BOOL].
func (f *buildFlags) parseCall() (c buildCall, err error) {
	text := f.call
	if f.check {
		text = "check"
	}
	if text == "" {
		return c, nil
	}
	fields, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil {
		return c, fmt.Errorf("invalid print value: %s", text)
	}
	name := ""
	for _, field := range fields {
		k, v, pair := strings.Cut(field, "=")
		switch {
		case !pair && name != "":
			return c, fmt.Errorf("invalid print value: %s", text)
		case !pair:
			name = field
		case k == "format" && (v == "json" || v == "text"):
			c.format = v
		case k == "format":
			return c, fmt.Errorf("invalid print field: %s: json and text are known", field)
		case k == "ignorestatus":
			if c.ignoreStatus, err = strconv.ParseBool(v); err != nil {
				return c, fmt.Errorf("invalid ignorestatus print value: %s: %w", v, err)
			}
		default:
			return c, fmt.Errorf("invalid print field: %s", field)
		}
	}
	switch name {
	case "", "build":
	case "check", "lint":
		c.request = "frontend.lint"
	case "outline", "targets":
		c.request = "frontend." + name
	default:
		return c, fmt.Errorf("unsupported call method %q: build, check, outline and targets are known", name)
	}
	return c, nil
}

// printCall prints what the frontend answered; a check that found something
// ends with exit code 1, as buildx's does.
func (a *App) printCall(c buildCall, md map[string][]byte) error {
	var found lint.LintResults
	switch {
	case c.request == "frontend.lint":
		if err := json.Unmarshal(md["result.json"], &found); err != nil {
			return buildError(fmt.Errorf("result of the check: %w", err))
		}
		if err := a.printLint(c, md, &found); err != nil {
			return err
		}
	case c.format == "json":
		fmt.Fprintln(a.Out, string(md["result.json"]))
	default:
		fmt.Fprint(a.Out, string(md["result.txt"]))
	}
	if n, err := strconv.Atoi(string(md["result.statuscode"])); err == nil && n != 0 && !c.ignoreStatus {
		return exit(n)
	}
	return nil
}

func (a *App) printLint(c buildCall, md map[string][]byte, found *lint.LintResults) error {
	switch n := len(found.Warnings); {
	case c.format == "json":
		fmt.Fprintln(a.Out, string(md["result.json"]))
	case n == 1:
		fmt.Fprintf(a.Out, "Check complete, 1 warning has been found!\n")
	case n > 1:
		fmt.Fprintf(a.Out, "Check complete, %d warnings have been found!\n", n)
	}
	if c.format != "json" {
		if err := found.PrintTo(a.Out, nil); err != nil {
			return buildError(err)
		}
	}
	switch {
	case found.Error != nil:
		if c.format != "json" && len(found.Warnings) > 0 {
			fmt.Fprintln(a.Out)
		}
		var b bytes.Buffer
		found.PrintErrorTo(&b, nil)
		return errors.New("ERROR: " + strings.TrimSuffix(b.String(), "\n"))
	case len(found.Warnings) == 0 && c.format != "json":
		fmt.Fprintln(a.Out, "Check complete, no warnings found.")
	}
	return nil
}
