package auth

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseChallenges(t *testing.T) {
	opt := cmp.AllowUnexported(challenge{})
	for _, c := range []struct {
		name    string
		headers []string
		want    []challenge
	}{
		{"Docker Hub's", []string{`Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"`},
			[]challenge{{"bearer", map[string]string{"realm": "https://auth.docker.io/token", "service": "registry.docker.io", "scope": "repository:a/b:pull,push"}}}},
		{"two in one header", []string{`Basic realm="x", BEARER Realm = y , error=invalid_token`},
			[]challenge{{"basic", map[string]string{"realm": "x"}}, {"bearer", map[string]string{"realm": "y", "error": "invalid_token"}}}},
		{"two headers, one without parameters", []string{`Negotiate`, `Basic realm=""`},
			[]challenge{{"negotiate", map[string]string{}}, {"basic", map[string]string{"realm": ""}}}},
		{"quotes within quotes", []string{`Basic realm="a \"b\", c=d"`}, []challenge{{"basic", map[string]string{"realm": `a "b", c=d`}}}},
		{"the first of two counts", []string{`Bearer realm="https://a",realm="https://evil"`}, []challenge{{"bearer", map[string]string{"realm": "https://a"}}}},
		{"an open quote", []string{`Bearer realm="https://a`}, []challenge{{"bearer", map[string]string{}}}},
		{"nothing", []string{"", ",", `=`, `"`}, nil},
	} {
		if diff := cmp.Diff(c.want, parseChallenges(c.headers), opt); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func FuzzParseChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://auth.docker.io/token",service="x\"y"`)
	f.Add(`Basic realm="x", Bearer a=b`)
	f.Add(`,,=,"`)
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range parseChallenges([]string{s, s}) {
			if c.scheme == "" || c.params == nil {
				t.Errorf("%q gives %v", s, c)
			}
		}
	})
}

func TestMergeScopes(t *testing.T) {
	for _, c := range []struct{ in, want []string }{
		{nil, nil},
		{[]string{"repository:a:pull", "repository:a:push,pull"}, []string{"repository:a:pull,push"}},
		{[]string{"repository:b:pull", "", "repository:a:pull repository:b:push"}, []string{"repository:a:pull", "repository:b:pull,push"}},
		{[]string{"repository:host:5000/a:pull", "catalog"}, []string{"catalog", "repository:host:5000/a:pull"}},
	} {
		if diff := cmp.Diff(c.want, mergeScopes(c.in)); diff != "" {
			t.Errorf("%v (-want +got):\n%s", c.in, diff)
		}
	}
}
