package auth

import "strings"

// challenge is one of a 401's offers, such as
// Bearer realm="https://auth.docker.io/token",service="registry.docker.io".
type challenge struct {
	scheme string // in lower case
	params map[string]string
}

// parseChallenges reads WWW-Authenticate headers (RFC 7235, section 4.1): each
// may hold several challenges, parted by the same commas as their parameters.
// What it can't read it leaves out.
func parseChallenges(headers []string) []challenge {
	var out []challenge
	for _, h := range headers {
		p := headerParser{s: h}
		for {
			p.skip(" \t,")
			word := p.token()
			if word == "" {
				break
			}
			p.skip(" \t")
			if p.peek() != '=' || len(out) == 0 {
				out = append(out, challenge{strings.ToLower(word), map[string]string{}})
				continue
			}
			p.i++
			p.skip(" \t")
			value, ok := p.value()
			if !ok {
				break
			}
			// RFC 7235 lets no parameter come twice; the first one counts.
			params := out[len(out)-1].params
			if key := strings.ToLower(word); params[key] == "" {
				params[key] = value
			}
		}
	}
	return out
}

type headerParser struct {
	s string
	i int
}

func (p *headerParser) peek() byte {
	if p.i < len(p.s) {
		return p.s[p.i]
	}
	return 0
}

func (p *headerParser) skip(chars string) {
	for p.i < len(p.s) && strings.IndexByte(chars, p.s[p.i]) >= 0 {
		p.i++
	}
}

func (p *headerParser) token() string {
	start := p.i
	for p.i < len(p.s) && !strings.ContainsRune(" \t,=\"", rune(p.s[p.i])) {
		p.i++
	}
	return p.s[start:p.i]
}

func (p *headerParser) value() (string, bool) {
	if p.peek() != '"' {
		return p.token(), true
	}
	var b strings.Builder
	for p.i++; p.i < len(p.s); p.i++ {
		switch c := p.s[p.i]; c {
		case '"':
			p.i++
			return b.String(), true
		case '\\':
			if p.i++; p.i < len(p.s) {
				b.WriteByte(p.s[p.i])
			}
		default:
			b.WriteByte(c)
		}
	}
	return "", false
}
