package trust

import (
	"encoding/json"
	"fmt"
	"time"
)

// Statement is what the fleet says to one device. What kinds there are, and
// what their bodies mean, is up to package transport.
type Statement struct {
	Format    int             `json:"format"`               // 1
	Device    string          `json:"device"`               // id of the only device that may act on it
	Counter   uint64          `json:"counter"`              // grows with each statement to that device
	Kind      string          `json:"kind"`                 // as "desired"
	Issued    time.Time       `json:"issued"`               // when it was signed: the device may raise its floor of time to it
	NotBefore *time.Time      `json:"not_before,omitempty"` // not to be acted on earlier
	Expires   time.Time       `json:"expires"`              // not to be acted on later
	Body      json.RawMessage `json:"body"`
}

// VerifyStatement checks an envelope against the keys of the role "fleet" (see
// Client.StatementKeys), the device that reads it, a lower bound of the time
// (zero: unknown, so that expiry does not count) and the highest counter that
// the device has acted on. The caller keeps the new counter durably before it
// acts.
//
// Errors wrap ErrFormat, ErrTooLarge, ErrSignature, ErrThreshold,
// ErrOtherDevice, ErrReplayed, ErrExpired or ErrNotYet, checked in this order.
func VerifyStatement(data []byte, keys KeySet, device string, now time.Time, last uint64) (Statement, error) {
	if len(data) > MaxStatement {
		return Statement{}, fmt.Errorf("statement: %w: %d bytes, at most %d", ErrTooLarge, len(data), MaxStatement)
	}
	payload, err := Verify(data, StatementType, keys)
	if err != nil {
		return Statement{}, fmt.Errorf("statement: %w", err)
	}
	s, err := ParseStatement(payload)
	if err != nil {
		return Statement{}, err
	}
	switch {
	case s.Device != device:
		return Statement{}, fmt.Errorf("%w: for %.80q, this is %q", ErrOtherDevice, s.Device, device)
	case s.Counter <= last:
		return Statement{}, fmt.Errorf("%w: counter %d, last seen %d", ErrReplayed, s.Counter, last)
	case now.IsZero():
		return s, nil
	case now.After(s.Expires):
		return Statement{}, fmt.Errorf("statement %d: %w: expired %s, it is %s or later", s.Counter, ErrExpired, s.Expires.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case s.NotBefore != nil && now.Before(*s.NotBefore):
		return Statement{}, fmt.Errorf("statement %d: %w: not before %s", s.Counter, ErrNotYet, s.NotBefore.Format(time.RFC3339))
	}
	return s, nil
}

// ParseStatement reads the payload of an envelope that was already verified.
func ParseStatement(payload []byte) (Statement, error) {
	var s Statement
	if err := decode(payload, MaxStatement, &s); err != nil {
		return Statement{}, fmt.Errorf("statement: %w", err)
	}
	switch {
	case s.Format != 1:
		return Statement{}, fmt.Errorf("statement: %w: format %d", ErrFormat, s.Format)
	case s.Device == "" || s.Kind == "" || s.Counter == 0 || s.Issued.IsZero() || s.Expires.IsZero() || len(s.Body) == 0:
		return Statement{}, fmt.Errorf("statement: %w: device, kind, counter, issued, expires and body must be given", ErrFormat)
	case s.Expires.Before(s.Issued):
		return Statement{}, fmt.Errorf("statement: %w: expires before it was issued", ErrFormat)
	}
	return s, nil
}
