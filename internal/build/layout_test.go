package build

import (
	"errors"
	"testing"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strake-project/strake/internal/oci"
)

// An identifier that is none, as a frontend may send it, is refused.
func TestLayoutIdentifier(t *testing.T) {
	e := New(Options{})
	defer e.Close()
	for _, id := range []string{"oci-layout", "oci-layout:", "oci-layout://", "oci-layout://x:1", "oci-layout://x@sha256:y"} {
		if _, err := e.layoutImage(t.Context(), &pb.SourceOp{Identifier: id}, oci.Platform{}); !errors.Is(err, oci.ErrInvalid) {
			t.Errorf("%s: %v", id, err)
		}
	}
}
