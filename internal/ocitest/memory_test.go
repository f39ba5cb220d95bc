package ocitest

import (
	"testing"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci/ref"
)

func TestMemory(t *testing.T) {
	Run(t, func(t *testing.T) End {
		m := NewMemory()
		return End{Sink: m, Source: func(*testing.T) content.Source { return m }, Ref: ref.Ref{Domain: "memory.test", Path: "a/b"}, Strict: true}
	})
}

func TestSparseMemory(t *testing.T) {
	Run(t, func(t *testing.T) End {
		m := NewSparse()
		return End{Sink: m, Source: func(*testing.T) content.Source { return m }, Ref: ref.Ref{Domain: "memory.test", Path: "a/b"}}
	})
}
