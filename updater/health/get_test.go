package health

import (
	"context"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Whatever a server answers: the check holds when the page, after redirects, is one of success.
func TestGet(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, strings.Repeat("long ", 1<<16)) })
	mux.HandleFunc("/none", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("/early", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusEarlyHints) })
	mux.HandleFunc("/query", func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("a b") != "ü" {
			w.WriteHeader(http.StatusBadRequest)
		}
	})
	mux.HandleFunc("/secret", func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "it" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	mux.Handle("/there", http.RedirectHandler("/ok", http.StatusFound))
	mux.Handle("/deep/there", http.RedirectHandler("../there", http.StatusPermanentRedirect))
	mux.Handle("/round", http.RedirectHandler("/round", http.StatusSeeOther))
	mux.Handle("/away", http.RedirectHandler("ftp://nowhere/", http.StatusFound))
	mux.HandleFunc("/nowhere", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusFound) })
	server := httptest.NewServer(mux)
	defer server.Close()
	for path, why := range map[string]string{
		"/ok": "", "/none": "", "/early": "", "/query?a+b=%C3%BC": "", "/there": "", "/deep/there": "",
		"/missing": "404", "/secret": "401", "/round": "10 redirects", "/away": `scheme "ftp"`, "/nowhere": "302",
	} {
		err := get(t.Context(), server.URL+path)
		if why == "" {
			require.NoError(t, err, path)
		} else {
			require.ErrorContains(t, err, why, path)
		}
	}
	require.NoError(t, get(t.Context(), strings.Replace(server.URL, "http://", "http://me:it@", 1)+"/secret"))
	require.ErrorContains(t, get(t.Context(), "http:///x"), "no host")
	require.Error(t, get(t.Context(), "http://%zz/"))
}

// A server that has a certificate of a known authority is believed, any other is not.
func TestGetTLS(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	known := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(known, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	t.Setenv("SSL_CERT_FILE", known) // crypto/x509 reads it once
	t.Setenv("SSL_CERT_DIR", t.TempDir())
	require.ErrorContains(t, get(t.Context(), server.URL+"/"), "404", "it got as far as the answer")
	require.ErrorContains(t, get(t.Context(), strings.Replace(server.URL, "127.0.0.1", "localhost", 1)), "certificate")
}

// A server that says nothing, nonsense, or never ends its header fails the check, in time.
func TestGetFromBrokenServer(t *testing.T) {
	for said, why := range map[string]string{
		"":                                     "deadline exceeded",
		"SSH-2.0-OpenSSH_9.2\r\n":              "malformed HTTP",
		"HTTP/1.1 200 OK\r\nX: ":               "deadline exceeded",
		"HTTP/1.1 200 OK\r\nX: " + long + long: "EOF",
		"HTTP/1.1 200 OK\r\nX: " + long + "\r\n\r\n": "EOF", // whole, and too long
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = c.Write([]byte(said))
			}
		}()
		ctx, cancel := context.WithCancel(t.Context())
		if hangs := strings.Contains(why, "deadline"); hangs {
			ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
		}
		require.ErrorContains(t, get(ctx, "http://"+l.Addr().String()), why, "%.40q", said)
		cancel()
		l.Close()
	}
}

var long = strings.Repeat("x", maxHeader)
