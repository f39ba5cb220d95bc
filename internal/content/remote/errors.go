package remote

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/strake-project/strake/internal/oci"
)

// Error is a registry's answer that means no. errors.Is finds its kind among
// oci's: by the codes of the distribution specification, else by the status.
type Error struct {
	Method string
	URL    string // without secrets
	Status int
	// Details are what the body says; often none.
	Details []Detail

	wait time.Duration // its Retry-After; below zero if there is none
}

// Detail is one entry of an error body.
type Detail struct{ Code, Message string }

// Error follows docker: "unexpected status from HEAD request to
// https://…: 500 Internal Server Error", and the registry's words.
func (e *Error) Error() string {
	s := fmt.Sprintf("unexpected status from %s request to %s: %d %s", e.Method, e.URL, e.Status, http.StatusText(e.Status))
	if w := e.Words(); w != "" {
		s += ": " + w
	}
	return s
}

// Words are the registry's own words as docker prints them, such as "denied:
// requested access to the resource is denied"; "" if it said nothing.
func (e *Error) Words() string {
	var all []string
	for _, d := range e.Details {
		code := strings.ToLower(strings.ReplaceAll(d.Code, "_", " "))
		switch {
		case d.Message == "":
			all = append(all, code)
		case code == "":
			all = append(all, d.Message)
		default:
			all = append(all, code+": "+d.Message)
		}
	}
	return strings.Join(all, "; ")
}

func (e *Error) has(code string) bool {
	return slices.ContainsFunc(e.Details, func(d Detail) bool { return d.Code == code })
}

// Is gives the kind.
func (e *Error) Is(target error) bool {
	for _, d := range e.Details {
		if k := codeKind(d.Code); k != nil {
			return k == target
		}
	}
	return statusKind(e.Status) == target
}

// codeKind: distribution specification v1.1, "Error Codes".
func codeKind(code string) error {
	switch code {
	case "NAME_UNKNOWN", "MANIFEST_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_BLOB_UNKNOWN", "BLOB_UPLOAD_UNKNOWN":
		return oci.ErrNotFound
	case "UNAUTHORIZED":
		return oci.ErrUnauthorized
	case "DENIED":
		return oci.ErrDenied
	case "TOOMANYREQUESTS":
		return oci.ErrTooMany
	case "UNSUPPORTED":
		return oci.ErrUnsupported
	case "DIGEST_INVALID", "SIZE_INVALID":
		return oci.ErrCorrupt
	case "NAME_INVALID", "TAG_INVALID", "MANIFEST_INVALID", "BLOB_UPLOAD_INVALID":
		return oci.ErrInvalid
	}
	return nil
}

func statusKind(status int) error {
	switch status {
	case http.StatusNotFound:
		return oci.ErrNotFound
	case http.StatusUnauthorized:
		return oci.ErrUnauthorized
	case http.StatusForbidden:
		return oci.ErrDenied
	case http.StatusTooManyRequests:
		return oci.ErrTooMany
	case http.StatusMethodNotAllowed, http.StatusNotImplemented, http.StatusUnsupportedMediaType:
		return oci.ErrUnsupported
	case http.StatusConflict:
		return oci.ErrConflict
	case http.StatusInsufficientStorage:
		return oci.ErrNoSpace
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		return oci.ErrInvalid
	}
	return nil
}

// maxErrorBody bounds what is read of an answer that means no.
const maxErrorBody = 64 << 10

// newError reads and closes resp's body.
func newError(resp *http.Response, now time.Time) *Error {
	e := &Error{Method: resp.Request.Method, URL: redact(resp.Request.URL), Status: resp.StatusCode, wait: retryAfter(resp.Header.Get("Retry-After"), now)}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody)) // half an answer is no worse than none
	resp.Body.Close()
	var said struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &said) != nil {
		return e
	}
	for _, d := range said.Errors[:min(len(said.Errors), 5)] {
		e.Details = append(e.Details, Detail{Code: oneLine(d.Code, 100), Message: oneLine(d.Message, 1000)})
	}
	return e
}

// oneLine makes a registry's words fit to be printed: no control characters
// that would steer a terminal, no more than limit bytes.
func oneLine(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r < ' ' || r >= 0x7f && r < 0xa0:
			return -1
		}
		return r
	}, s)
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return strings.TrimSpace(s)
}

// redact prints u without what may be a secret: user info, fragment, and all
// query values but those of the distribution API's own parameters. Signed
// URLs of storage services carry their keys in the query.
func redact(u *url.URL) string {
	v := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	s := v.String()
	if u.RawQuery == "" {
		return s
	}
	keep := url.Values{}
	for k, vals := range u.Query() {
		switch k {
		case "digest", "mount", "from", "n", "last", "artifactType", "scope", "service":
			keep[k] = vals
		}
	}
	if q := keep.Encode(); q != "" {
		return s + "?" + strings.ReplaceAll(q, "%3A", ":")
	}
	return s
}

// networkError is a request that got no answer.
type networkError struct {
	method, url string
	err         error
}

func (e *networkError) Error() string {
	return fmt.Sprintf("failed to do request: %s%s \"%s\": %v", e.method[:1], strings.ToLower(e.method[1:]), e.url, e.err)
}

func (e *networkError) Unwrap() error { return e.err }

// worded is an error with words of docker's and a cause of ours.
type worded struct {
	text string
	err  error
}

func (w worded) Error() string { return w.text }
func (w worded) Unwrap() error { return w.err }
