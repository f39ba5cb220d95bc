package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/strake-project/strake/internal/oci"
)

// The error codes of the specification ("Error Codes"), and two of the
// distribution registry's for what the specification has none.
const (
	codeBlobUnknown         = "BLOB_UNKNOWN"
	codeBlobUploadInvalid   = "BLOB_UPLOAD_INVALID"
	codeBlobUploadUnknown   = "BLOB_UPLOAD_UNKNOWN"
	codeDigestInvalid       = "DIGEST_INVALID"
	codeManifestBlobUnknown = "MANIFEST_BLOB_UNKNOWN"
	codeManifestInvalid     = "MANIFEST_INVALID"
	codeManifestUnknown     = "MANIFEST_UNKNOWN"
	codeNameInvalid         = "NAME_INVALID"
	codeNameUnknown         = "NAME_UNKNOWN"
	codeSizeInvalid         = "SIZE_INVALID"
	codeTagInvalid          = "TAG_INVALID"
	codeUnsupported         = "UNSUPPORTED"
	codeTooManyRequests     = "TOOMANYREQUESTS"
	codePageInvalid         = "PAGINATION_NUMBER_INVALID"
	codeNotFound            = "NOT_FOUND"
	codeUnknown             = "UNKNOWN"
)

// apiError is an answer with a status and the specification's JSON.
type apiError struct {
	status  int
	Code    string `json:"code"`
	Message string `json:"message"`
	Detail  any    `json:"detail,omitempty"`
}

func (e *apiError) Error() string { return e.Code + ": " + e.Message }

func fault(code string, status int, format string, args ...any) *apiError {
	return &apiError{status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

// fail answers with err. What is no fault of the client's is logged; the
// client learns the kind, not our paths.
func (g *Registry) fail(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, errAnswered) {
		// The status has gone out: the only way left to say that the body is
		// not whole is to break the connection.
		g.log.Error("registry", "method", r.Method, "path", r.URL.Path, "err", err)
		panic(http.ErrAbortHandler)
	}
	var e *apiError
	switch {
	case errors.As(err, &e):
	case errors.Is(err, oci.ErrNoSpace):
		e = fault(codeUnknown, http.StatusInsufficientStorage, "no space left on the registry's device")
	case errors.Is(err, oci.ErrNotFound):
		e = fault(codeNotFound, http.StatusNotFound, "not found")
	case errors.Is(err, oci.ErrCorrupt), errors.Is(err, oci.ErrInvalid):
		e = fault(codeBlobUploadInvalid, http.StatusBadRequest, "%v", err)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, context.Canceled):
		e = fault(codeSizeInvalid, http.StatusBadRequest, "the request's body ended early")
	default:
		e = fault(codeUnknown, http.StatusInternalServerError, "internal error; the registry's log has the cause")
	}
	if e.status >= 500 {
		g.log.Error("registry", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Del("Content-Length")
	w.WriteHeader(e.status)
	if r.Method != http.MethodHead {
		json.NewEncoder(w).Encode(map[string]any{"errors": []*apiError{e}})
	}
}

// errAnswered marks a failure after the answer began.
var errAnswered = errors.New("after the answer began")
