package health

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	maxRedirects = 10
	maxHeader    = 64 << 10 // bytes that are read of an answer
)

// get asks for a URL, follows redirects, and wants an answer that says success.
//
// It speaks HTTP/1.1 by hand, for net/http's client brings proxies, cookies, compression
// and international names along: 0.2 MB of a device program that may have 8. What a
// program on this device answers needs none of them.
func get(ctx context.Context, target string) error {
	u, err := url.Parse(target)
	for range maxRedirects {
		if err != nil {
			return err
		}
		var response *http.Response
		if response, err = ask(ctx, u); err != nil {
			return fmt.Errorf("%s: %w", target, err)
		}
		switch response.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
			if to := response.Header.Get("Location"); to != "" {
				u, err = u.Parse(to)
				continue
			}
		}
		if response.StatusCode/100 != 2 {
			return fmt.Errorf("%s: %s", target, response.Status)
		}
		return nil
	}
	return fmt.Errorf("%s: stopped after %d redirects", target, maxRedirects)
}

// ask sends one request on a connection of its own and reads the header of the answer.
func ask(ctx context.Context, u *url.URL) (*http.Response, error) {
	var dialer interface {
		DialContext(ctx context.Context, network, address string) (net.Conn, error)
	}
	port := ""
	switch u.Scheme {
	case "http":
		dialer, port = &net.Dialer{}, "80"
	case "https":
		dialer, port = &tls.Dialer{Config: &tls.Config{NextProtos: []string{"http/1.1"}}}, "443"
	default:
		return nil, fmt.Errorf("scheme %q", u.Scheme)
	}
	if u.Hostname() == "" {
		return nil, errors.New("no host in it")
	}
	c, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port)))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	var request strings.Builder
	fmt.Fprintf(&request, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: tandem\r\nConnection: close\r\n", u.RequestURI(), u.Host)
	if password, ok := u.User.Password(); ok || u.User.Username() != "" {
		fmt.Fprintf(&request, "Authorization: Basic %s\r\n", base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password)))
	}
	request.WriteString("\r\n")
	_, err = io.WriteString(c, request.String())
	var response *http.Response
	answer := bufio.NewReader(io.LimitReader(c, maxHeader))
	for err == nil && (response == nil || response.StatusCode/100 == 1) {
		response, err = http.ReadResponse(answer, nil) // an answer may be announced, and then come
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return response, err
}
