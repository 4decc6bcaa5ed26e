package demo

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tandem-ota/tandem/updater/manifest"
)

// contents says what a release holds, for people: "boot 16.2 MiB (full 10.8 MiB, delta 498 B), …".
func (p parcel) contents() string {
	var images []string
	for _, i := range p.m.Images {
		var payloads []string
		for _, q := range i.Payloads {
			payloads = append(payloads, fmt.Sprintf("%s %s", q.Kind, size(q.Blob.Size)))
		}
		images = append(images, fmt.Sprintf("%s %s (%s)", i.Name, size(i.Size), strings.Join(payloads, ", ")))
	}
	return strings.Join(images, ", ")
}

// kind is what of a release travelled.
func (u *update) kind() string {
	var kinds []string
	for _, k := range []string{manifest.KindDelta, manifest.KindFull, manifest.KindIndex} {
		if slices.ContainsFunc(u.payloads, func(s string) bool { return strings.Contains(s, ": "+k+" ") }) {
			kinds = append(kinds, k)
		}
	}
	return strings.Join(kinds, "+")
}

// account is the table at the end.
func (p *play) account() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nWhat happened\n\n")
	w := tabwriter.NewWriter(&b, 2, 8, 2, ' ', 0)
	fmt.Fprintln(w, "  RELEASE\tSENT AS\tENDED\tSLOT\tDOWNLOADED\tOF THE IMAGES\tWRITTEN\tLEFT ALONE\tPUBLISH TO VERDICT")
	for _, u := range p.then {
		v := u.verdict
		ended := v.Result
		if v.Reason != "" {
			ended += " (" + v.Reason + ")"
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\t%s of %s\t%s\t%s\t%s\n", u.m.Version, u.kind(), printable(ended), v.Slot, size(v.Bytes),
			percent(v.Bytes, u.total()), size(u.total()), size(v.Written), size(v.Skipped), seconds(u.published, u.told))
	}
	w.Flush()
	fmt.Fprintln(&b)
	w = tabwriter.NewWriter(&b, 2, 8, 2, ' ', 0)
	good, bad := p.then[0], p.then[1]
	fmt.Fprintf(w, "  from publish to the reboot\t%s\n", seconds(good.published, good.trial))
	fmt.Fprintf(w, "  from publish to commit\t%s\n", seconds(good.published, good.told))
	fmt.Fprintf(w, "  from the hang to the watchdog's reset\t%s\n", seconds(bad.hung, bad.bite))
	fmt.Fprintf(w, "  from the hang to the good slot's start\t%s\n", seconds(bad.hung, bad.back))
	fmt.Fprintf(w, "  from the hang to the verdict at the desk\t%s\n", seconds(bad.hung, bad.told))
	fmt.Fprintf(w, "  memory of updater, installing\tat most %s (%s), %s (%s)\n", size(good.peak), good.kind(), size(bad.peak), bad.kind())
	fmt.Fprintf(w, "  memory of updater, at rest\t%s\n", size(p.last.Memory.RSS))
	fmt.Fprintf(w, "  TPM\tPCR %d %s, ledger %s of %d installs; both are so\n", p.board.TPM.PCR, short(p.state.TPM.PCR), short(p.state.TPM.Ledger), len(p.last.TPM.Ledger.Entries))
	fmt.Fprintf(w, "  what the device said was compared with\t%s\n", tally(p.checks))
	fmt.Fprintf(w, "  all in all\t%s\n", seconds(p.began, time.Now()))
	w.Flush()
	fmt.Fprintf(&b, "\nConsole, events and disk are in %s\n\ndemo: ok\n", p.dir)
	return b.String()
}

func percent(part, whole int64) string {
	if whole == 0 {
		return "-"
	}
	share := 100 * float64(part) / float64(whole)
	if share < 0.1 {
		return fmt.Sprintf("%.3f %%", share)
	}
	return fmt.Sprintf("%.1f %%", share)
}

// seconds is the time between two events, "-" if one of them did not happen.
func seconds(from, to time.Time) string {
	if from.IsZero() || to.IsZero() {
		return "-"
	}
	return fmt.Sprintf("%.1f s", to.Sub(from).Seconds())
}

// tally counts equal words: "grub-editenv (3 times), sysfs (2 times)".
func tally(words []string) string {
	var names, out []string
	count := map[string]int{}
	for _, w := range words {
		if count[w]++; count[w] == 1 {
			names = append(names, w)
		}
	}
	for _, n := range names {
		times := "once"
		if count[n] > 1 {
			times = fmt.Sprintf("%d times", count[n])
		}
		out = append(out, n+" ("+times+")")
	}
	return strings.Join(out, ", ")
}
