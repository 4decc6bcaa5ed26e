package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/tandem-ota/tandem/updater/trust/mktrust"
)

const keysUsage = `usage: tandem keys COMMAND [options] DIR

  init     make a trust folder: keys of all roles, first TUF metadata, root.json
           and release-keys.json for the system image
  rotate   give a role new keys (DIR ROLE)
  renew    give the root metadata a new expiry
  refresh  sign a new timestamp, and a new snapshot where one is due
  sign     add signatures to metadata that waits in DIR/staged
  show     print roles, keys and expiry

Roles: root, targets, snapshot, timestamp, release (manifests), fleet (statements
to devices). Private keys are in DIR/keys and nowhere else: keep root and targets
off line. A signer of your own (HSM, KMS) is given as exec:COMMAND; it is run with
TANDEM_SIGNER_OP=public or sign, see go doc .../updater/trust/mktrust.

Exit codes: 0 done, 1 failed, 2 wrong usage, 4 more signatures are needed.
`

// coded is an error with the exit code that a script can act on.
type coded struct {
	error
	code int
}

func (c coded) ExitCode() int { return c.code }
func (c coded) Unwrap() error { return c.error }

// Exit codes of keys and release, as their usage documents them.
const (
	exitUsage      = 2
	exitUntrusted  = 3
	exitIncomplete = 4
)

func usageError(format string, args ...any) error {
	return coded{fmt.Errorf(format, args...), exitUsage}
}

// incomplete gives the error of unfinished signatures its code and a hint.
func incomplete(err error) error {
	if errors.Is(err, mktrust.ErrIncomplete) || errors.Is(err, mktrust.ErrNoKey) {
		return coded{fmt.Errorf("%w\nhint: run the same command on the machine that has the other keys", err), exitIncomplete}
	}
	return err
}

// subcommand finds the command that args name and runs it.
func subcommand(ctx context.Context, name, usage string, commands map[string]func(context.Context, []string, io.Writer, io.Writer) error, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 && slices.Contains([]string{"-h", "-help", "--help", "help"}, args[0]) {
		_, err := io.WriteString(stdout, usage)
		return err
	}
	if len(args) > 0 && commands[args[0]] != nil {
		err := commands[args[0]](ctx, args[1:], stdout, stderr)
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	fmt.Fprint(stderr, usage)
	if len(args) == 0 {
		return usageError("no command; see tandem %s -h", name)
	}
	return usageError("unknown command %q; see tandem %s -h", args[0], name)
}

// parseFlags parses options that may stand before, between and after operands,
// of which there must be n.
func parseFlags(f *flag.FlagSet, stderr io.Writer, args []string, n int, operands string) ([]string, error) {
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprintf(stderr, "usage: %s [options] %s\n\n", f.Name(), operands)
		f.PrintDefaults()
	}
	var rest []string
	for len(args) > 0 {
		if err := f.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, err
			}
			return nil, coded{err, exitUsage}
		}
		args = f.Args()
		if len(args) > 0 {
			rest, args = append(rest, args[0]), args[1:]
		}
	}
	if len(rest) != n {
		f.Usage()
		return nil, usageError("%d operands, want %d: %s", len(rest), n, operands)
	}
	return rest, nil
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// keysCmd runs "tandem keys".
func keysCmd(ctx context.Context, args []string, _ io.Reader, stdout, stderr io.Writer) error {
	simple := func(do func(*mktrust.Folder, context.Context) error) func(context.Context, []string, io.Writer, io.Writer) error {
		return func(ctx context.Context, args []string, stdout, stderr io.Writer) error {
			rest, err := parseFlags(flag.NewFlagSet("tandem keys", flag.ContinueOnError), stderr, args, 1, "DIR")
			if err != nil {
				return err
			}
			f, err := mktrust.Open(rest[0], time.Now())
			if err != nil {
				return err
			}
			if err := do(f, ctx); err != nil {
				return incomplete(err)
			}
			return showKeys(f, stdout)
		}
	}
	return subcommand(ctx, "keys", keysUsage, map[string]func(context.Context, []string, io.Writer, io.Writer) error{
		"init":    keysInit,
		"rotate":  keysRotate,
		"show":    keysShow,
		"renew":   simple((*mktrust.Folder).RenewRoot),
		"refresh": simple((*mktrust.Folder).Refresh),
		"sign":    simple((*mktrust.Folder).SignStaged),
	}, args, stdout, stderr)
}

// quorum reads "2/3": two of three keys must sign.
func quorum(s string) (mktrust.Quorum, error) {
	threshold, keys, ok := strings.Cut(s, "/")
	t, err1 := strconv.Atoi(threshold)
	n, err2 := strconv.Atoi(keys)
	if !ok || err1 != nil || err2 != nil || t < 1 || t > n || n > 32 {
		return mktrust.Quorum{}, usageError("quorum %q is not THRESHOLD/KEYS, as 2/3", s)
	}
	return mktrust.Quorum{Keys: n, Threshold: t}, nil
}

func keysInit(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("tandem keys init", flag.ContinueOnError)
	kind := f.String("kind", mktrust.Ed25519, "`kind` of the new keys: ed25519 or ecdsa (P-256)")
	var quorums, signers several
	f.Var(&quorums, "quorum", "`ROLE=M/N`: make N keys for the role, of which M must sign (repeatable; 1/1 otherwise)")
	f.Var(&signers, "signer", "`ROLE=exec:COMMAND`: the role is signed by a program of yours, no key is made (repeatable)")
	rest, err := parseFlags(f, stderr, args, 1, "DIR")
	if err != nil {
		return err
	}
	o := mktrust.InitOptions{Kind: *kind, Quorums: map[string]mktrust.Quorum{}, Signers: map[string]string{}}
	for _, s := range quorums {
		role, value, _ := strings.Cut(s, "=")
		if o.Quorums[role], err = quorum(value); err != nil {
			return err
		}
		if !slices.Contains(mktrust.Roles, role) {
			return usageError("no role is named %q; there are %s", role, strings.Join(mktrust.Roles, ", "))
		}
	}
	for _, s := range signers {
		role, value, ok := strings.Cut(s, "=")
		if !ok || !slices.Contains(mktrust.Roles, role) {
			return usageError("signer %q is not ROLE=exec:COMMAND with one of the roles %s", s, strings.Join(mktrust.Roles, ", "))
		}
		o.Signers[role] = value
	}
	folder, err := mktrust.Init(ctx, rest[0], time.Now(), o)
	if err != nil {
		return incomplete(err)
	}
	if err := showKeys(folder, stdout); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "\nprivate keys are in %s: back them up, and take root and targets off line\n", filepath.Join(rest[0], "keys"))
	return err
}

func keysRotate(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("tandem keys rotate", flag.ContinueOnError)
	var o mktrust.RotateOptions
	f.StringVar(&o.Kind, "kind", mktrust.Ed25519, "`kind` of the new keys: ed25519 or ecdsa (P-256)")
	f.StringVar(&o.Signer, "signer", "", "`exec:COMMAND` that signs instead of a new key")
	q := f.String("quorum", "1/1", "`M/N`: make N keys, of which M must sign")
	rest, err := parseFlags(f, stderr, args, 2, "DIR ROLE")
	if err != nil {
		return err
	}
	if o.Quorum, err = quorum(*q); err != nil {
		return err
	}
	if !slices.Contains(mktrust.Roles, rest[1]) {
		return usageError("no role is named %q; there are %s", rest[1], strings.Join(mktrust.Roles, ", "))
	}
	folder, err := mktrust.Open(rest[0], time.Now())
	if err != nil {
		return err
	}
	if err := folder.Rotate(ctx, rest[1], o); err != nil {
		return incomplete(err)
	}
	return showKeys(folder, stdout)
}

// roleInfo is what people want to know of a role.
type roleInfo struct {
	Role      string     `json:"role"`
	Version   int64      `json:"version,omitempty"`
	Expires   *time.Time `json:"expires,omitempty"`
	Threshold int        `json:"threshold"`
	Keys      []string   `json:"keys"`
}

func keysShow(_ context.Context, args []string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("tandem keys show", flag.ContinueOnError)
	asJSON := f.Bool("json", false, "print JSON")
	rest, err := parseFlags(f, stderr, args, 1, "DIR")
	if err != nil {
		return err
	}
	folder, err := mktrust.Open(rest[0], time.Now())
	if err != nil {
		return err
	}
	if !*asJSON {
		return showKeys(folder, stdout)
	}
	info, err := rolesOf(folder)
	if err != nil {
		return err
	}
	return printJSON(stdout, info)
}

func showKeys(f *mktrust.Folder, w io.Writer) error {
	info, err := rolesOf(f)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%-10s %8s  %-10s %-7s %s\n", "ROLE", "VERSION", "EXPIRES", "QUORUM", "KEYS")
	for _, r := range info {
		version, expires := "", ""
		if r.Expires != nil {
			version, expires = strconv.FormatInt(r.Version, 10), r.Expires.Format(time.DateOnly)
		}
		var ids []string
		for _, id := range r.Keys {
			ids = append(ids, id[:min(len(id), 12)])
		}
		fmt.Fprintf(w, "%-10s %8s  %-10s %d of %d  %s\n", r.Role, version, expires, r.Threshold, len(r.Keys), strings.Join(ids, " "))
	}
	return nil
}

func rolesOf(f *mktrust.Folder) ([]roleInfo, error) {
	root, err := f.Root()
	if err != nil {
		return nil, err
	}
	targets, err := f.Targets()
	if errors.Is(err, os.ErrNotExist) {
		targets, err = metadata.Targets(), nil // staged, not published yet
	}
	if err != nil {
		return nil, err
	}
	release, err := f.ReleaseKeys()
	if err != nil {
		return nil, err
	}
	online := map[string]roleInfo{
		mktrust.Root:    {Version: root.Signed.Version, Expires: &root.Signed.Expires},
		mktrust.Targets: {Version: targets.Signed.Version, Expires: &targets.Signed.Expires},
	}
	if data, err := f.Metadata(context.Background(), "timestamp.json"); err == nil {
		ts, err := metadata.Timestamp().FromBytes(data)
		if err != nil {
			return nil, err
		}
		online[mktrust.Timestamp] = roleInfo{Version: ts.Signed.Version, Expires: &ts.Signed.Expires}
		version := ts.Signed.Meta["snapshot.json"].Version
		if data, err := f.Metadata(context.Background(), strconv.FormatInt(version, 10)+".snapshot.json"); err == nil {
			snapshot, err := metadata.Snapshot().FromBytes(data)
			if err != nil {
				return nil, err
			}
			online[mktrust.Snapshot] = roleInfo{Version: version, Expires: &snapshot.Signed.Expires}
		}
	}
	var out []roleInfo
	for _, role := range mktrust.Roles {
		r := online[role]
		r.Role = role
		switch role {
		case mktrust.Release:
			r.Threshold, r.Keys = release.Threshold(), release.IDs()
			slices.Sort(r.Keys)
		case mktrust.Fleet:
			if targets.Signed.Delegations != nil {
				for _, d := range targets.Signed.Delegations.Roles {
					if d.Name == role {
						r.Threshold, r.Keys = d.Threshold, d.KeyIDs
					}
				}
			}
		default:
			r.Threshold, r.Keys = root.Signed.Roles[role].Threshold, root.Signed.Roles[role].KeyIDs
		}
		out = append(out, r)
	}
	return out, nil
}
