package registry

import (
	"net/http"
	"strings"
)

// search answers GET /v1/search?q=TERM&n=COUNT as Docker Hub does, which
// `docker search HOST/TERM` asks: the repositories whose name holds the term.
func (g *Registry) search(q query) error {
	args := q.r.URL.Query()
	limit := int64(25)
	if args.Has("n") {
		n, ok := number(args.Get("n"))
		if !ok {
			return fault(codePageInvalid, http.StatusBadRequest, "n=%q is no number", args.Get("n"))
		}
		limit = n
	}
	names, err := g.names(q.ctx())
	if err != nil {
		return err
	}
	type result struct {
		Name        string `json:"name"`
		Description string `json:"description"`
		StarCount   int    `json:"star_count"`
		IsOfficial  bool   `json:"is_official"`
		IsAutomated bool   `json:"is_automated"`
	}
	found := []result{}
	for _, name := range names {
		if int64(len(found)) < limit && strings.Contains(name, args.Get("q")) {
			found = append(found, result{Name: name})
		}
	}
	return g.json(q, "application/json", struct {
		Count   int      `json:"num_results"`
		Query   string   `json:"query"`
		Results []result `json:"results"`
	}{len(found), args.Get("q"), found})
}
