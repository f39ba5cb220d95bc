package registry

import (
	"context"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"testing"

	"github.com/strake-project/strake/internal/content/store"
)

// TestServeByHand serves a store until an interrupt; for trying clients by hand:
// STRAKE_REGISTRY=127.0.0.1:5555 STRAKE_REGISTRY_ROOT=/tmp/x go test -run ByHand -timeout 0
func TestServeByHand(t *testing.T) {
	addr := os.Getenv("STRAKE_REGISTRY")
	if addr == "" {
		t.Skip("STRAKE_REGISTRY is not set")
	}
	s, err := store.Open(os.Getenv("STRAKE_REGISTRY_ROOT"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if err := Serve(ctx, l, s, Options{Log: log}); err != nil {
		t.Fatal(err)
	}
}
