package transport

// KindDesired is the kind of the signed statement in a Want (see package
// updater/trust for the envelope around it); Desired is its body.
const KindDesired = "desired"

// What a device does when no delta fits what it runs, or one cannot be applied.
const (
	FullFail = "fail" // report it and wait for another statement
	FullWait = "wait" // until the operator allows the download
	FullGo   = "full" // download the whole images
)

// Desired names the release that a device should run.
type Desired struct {
	Manifest string `json:"manifest"`          // digest of the manifest
	Target   string `json:"target,omitempty"`  // its name in the TUF targets
	Version  string `json:"version,omitempty"` // for people
	Force    bool   `json:"force,omitempty"`   // also if it failed here before
	Full     string `json:"full,omitempty"`    // FullFail, FullWait or FullGo; "" is FullFail
}

// ParseDesired checks the body of a statement of KindDesired.
func ParseDesired(body []byte) (Desired, error) {
	var d Desired
	if err := decode("desired", body, MaxWant, &d); err != nil {
		return Desired{}, err
	}
	c := checks{kind: "desired"}
	c.digest("manifest", d.Manifest, false)
	c.text("target", d.Target, maxReason)
	c.text("version", d.Version, maxText)
	c.oneOf("full", d.Full, "", FullFail, FullWait, FullGo)
	if c.err != nil {
		return Desired{}, c.err
	}
	return d, nil
}
