package remote

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

var errStalled = errors.New("the server sends nothing")

// watch ends a request whose server falls silent. However slow, what moves goes on.
type watch struct {
	ctx      context.Context
	cancel   context.CancelCauseFunc
	after    time.Duration
	timer    *time.Timer
	answered atomic.Bool // the request's own body is no sign of life any more
}

// newWatch begins to wait for a sign of life.
func newWatch(ctx context.Context, after time.Duration) *watch {
	w := &watch{after: after}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.timer = time.AfterFunc(after, func() { w.cancel(errStalled) })
	return w
}

// alive says that something came, or went.
func (w *watch) alive() { w.timer.Reset(w.after) }

// within waits for the next sign of life as long as d.
func (w *watch) within(d time.Duration) { w.timer.Reset(d) }

// pause stops the clock while the caller is busy.
func (w *watch) pause() { w.timer.Stop() }

func (w *watch) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

func (w *watch) cause(err error) error {
	if context.Cause(w.ctx) == errStalled {
		return errStalled
	}
	return err
}

// watchedBody is an answer's body under watch: the clock runs only while a
// Read waits, so a slow reader is not taken for a silent server.
type watchedBody struct {
	rc   io.ReadCloser
	w    *watch
	once sync.Once
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.w.alive()
	n, err := b.rc.Read(p)
	b.w.pause()
	if err != nil && err != io.EOF {
		err = b.w.cause(err)
	}
	return n, err
}

func (b *watchedBody) Close() error {
	err := b.rc.Close()
	b.once.Do(b.w.stop)
	return err
}

// watchedUpload is a request's body under watch: the clock runs from one Read
// to the next, which the connection asks for when it has room, and after the
// last one until the answer; not while a slow source is read.
type watchedUpload struct {
	io.ReadCloser
	w      *watch
	left   int64
	answer time.Duration
}

func (b *watchedUpload) Read(p []byte) (int, error) {
	if b.w.answered.Load() {
		return b.ReadCloser.Read(p)
	}
	b.w.pause()
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	switch {
	case b.w.answered.Load():
	case b.left <= 0 || err != nil:
		b.w.within(b.answer)
	default:
		b.w.alive()
	}
	return n, err
}
