package control

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/transport"
)

type fake struct {
	verb string
	got  Request
	err  error
}

func (f *fake) Status(context.Context) (any, error) { return map[string]string{"slot": "a"}, nil }

func (f *fake) Do(_ context.Context, verb string, r Request, progress func(transport.Progress)) error {
	f.verb, f.got = verb, r
	progress(transport.Progress{Phase: "writing", Done: 1, Total: 2})
	return f.err
}

func (f *fake) Code(error) int { return 3 }

// What a command asks for reaches the agent, and progress and outcome come back.
func TestClientAndServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	_, err := Dial(path)
	require.ErrorIs(t, err, ErrNoAgent)

	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	h := &fake{}
	go func() { ended <- Serve(ctx, path, h) }()
	var c *Client
	require.Eventually(t, func() bool { c, err = Dial(path); return err == nil }, 1e10, 1e6)

	status, err := c.Status(ctx)
	require.NoError(t, err)
	require.JSONEq(t, `{"slot":"a"}`, string(status))

	var seen []transport.Progress
	request := Request{Release: "/media/stick", Force: true}
	require.NoError(t, c.Do(ctx, "install", request, func(p transport.Progress) { seen = append(seen, p) }))
	require.Equal(t, "install", h.verb)
	require.Equal(t, request, h.got)
	require.Len(t, seen, 1)

	h.err = errors.New("not made for this board")
	var failure *Failure
	require.ErrorAs(t, c.Do(ctx, "install", request, nil), &failure)
	require.Equal(t, Failure{Text: "not made for this board", Code: 3}, *failure)

	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	_, err = Dial(path)
	require.ErrorIs(t, err, ErrNoAgent)
}

// Nobody but root changes anything, nothing comes from a body that is too large or
// says what nobody knows, and reading is free.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		uid          any
		method, body string
		want         int
	}{
		"somebody else":      {12345, http.MethodPost, "{}", http.StatusForbidden},
		"kernel did not say": {-1, http.MethodPost, "{}", http.StatusForbidden},
		"no credentials":     {nil, http.MethodPost, "{}", http.StatusForbidden},
		"unknown field":      {0, http.MethodPost, `{"Release":"x","evil":1}`, http.StatusBadRequest},
		"too large":          {0, http.MethodPost, `{"release":"` + strings.Repeat("x", maxRequest) + `"}`, http.StatusBadRequest},
		"no object":          {0, http.MethodPost, "", http.StatusBadRequest},
		"root":               {0, http.MethodPost, "{}", http.StatusOK},
		"reading":            {12345, http.MethodGet, "", http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			h := &fake{}
			path := "/v1/install"
			if c.method == http.MethodGet {
				path = "/v1/status"
			}
			r := httptest.NewRequest(c.method, path, strings.NewReader(c.body))
			r = r.WithContext(context.WithValue(r.Context(), peer{}, c.uid))
			w := httptest.NewRecorder()
			routes(context.Background(), h).ServeHTTP(w, r)
			require.Equal(t, c.want, w.Code)
			require.Equal(t, c.want == http.StatusOK && c.method == http.MethodPost, h.verb != "")
		})
	}
}
