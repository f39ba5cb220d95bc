package registry

import (
	"context"
	"sync"
	"time"
)

// leaseTime is how long content stays at least that no manifest names yet; it
// stays twice that at most.
const leaseTime = time.Hour

// leases gives every request the current lease of two: when one has served for
// leaseTime a new one takes its place, and it ends when that one does.
type leases struct {
	store Store

	mu       sync.Mutex
	current  context.Context
	since    time.Time
	release  func() // the current one's
	previous func()
}

// context returns ctx with the current lease.
func (l *leases) context(ctx context.Context) (context.Context, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current == nil || time.Since(l.since) > leaseTime {
		current, release, err := l.store.Lease(context.Background())
		if err != nil {
			return nil, err
		}
		if l.previous != nil {
			l.previous()
		}
		l.current, l.release, l.previous, l.since = current, release, l.release, time.Now()
	}
	return leased{ctx, l.current}, nil
}

func (l *leases) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, release := range []func(){l.release, l.previous} {
		if release != nil {
			release()
		}
	}
	l.current, l.release, l.previous = nil, nil, nil
}

// leased is a request's context that has the lease's values too.
type leased struct {
	context.Context
	lease context.Context
}

func (l leased) Value(key any) any {
	if v := l.Context.Value(key); v != nil {
		return v
	}
	return l.lease.Value(key)
}
