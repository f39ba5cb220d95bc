package registry

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// patience is how long a client may send or take nothing in the middle of a
// body. Whole transfers have no limit: layers are large and lines slow.
const patience = 2 * time.Minute

// Serve serves s on l until ctx ends, then lets requests under way finish for
// up to ten seconds. It closes l. The end of ctx is no error.
func Serve(ctx context.Context, l net.Listener, s Store, opt Options) error {
	g := New(s, opt)
	defer g.Close()
	srv := &http.Server{
		Handler:           g,
		ReadHeaderTimeout: 20 * time.Second, // headers dripped one by one hold a connection no longer
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		defer close(stopped)
		if srv.Shutdown(grace) != nil { // their time is over
			srv.Close()
		}
	})
	err := srv.Serve(l)
	if stop() || !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-stopped
	return nil
}

// patient gives each Read of a request's body its own deadline.
func patient(w http.ResponseWriter, body io.ReadCloser) io.ReadCloser {
	if body == nil || body == http.NoBody {
		return body
	}
	return &patientBody{body, http.NewResponseController(w)}
}

type patientBody struct {
	io.ReadCloser
	control *http.ResponseController
}

func (p *patientBody) Read(b []byte) (int, error) {
	p.control.SetReadDeadline(time.Now().Add(patience)) // not every connection can
	n, err := p.ReadCloser.Read(b)
	if err != nil {
		// net/http reads on in the background, to notice a client that leaves;
		// a deadline there would end a request that verifies a large blob.
		p.control.SetReadDeadline(time.Time{})
	}
	return n, err
}
