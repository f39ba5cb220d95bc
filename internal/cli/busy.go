package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/strake-project/strake/internal/cli/term"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
)

// showBusy shows on a terminal that cmd works, where nothing else would for
// more than a second.
func (a *App) showBusy(cmd *cobra.Command) {
	if q := cmd.Flags().Lookup("quiet"); q != nil && q.Changed || !commandTraits()[a.command].long {
		return
	}
	a.busy = term.NewBusy(a.Streams, a.command)
}

// counted is a source of which is told how much was read.
type counted struct {
	content.Source
	busy *term.Busy
}

// Open implements content.Source.
func (c counted) Open(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	r, err := c.Source.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	return countedReader{r, c.busy}, nil
}

type countedReader struct {
	io.ReadCloser
	busy *term.Busy
}

func (c countedReader) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.busy.Add(n)
	return n, err
}
