package attacks

// Threat is one that somebody else has named, so that a reader who knows the list
// finds what is tested against it.
type Threat struct {
	ID     string
	Title  string
	Source string
	// Outside says why no case can exist, where it is out of a device's reach.
	Outside string
}

// Sources of threats.
const (
	tufSource    = "TUF specification 1.0, section 1.5.2"
	uptaneSource = "Uptane Standard 2, section 4.3"
	suitSource   = "RFC 9124, section 4.2"
)

// Threats by the words of TUF. Slow retrieval, which it named once, is in Uptane's list.
const (
	tufArbitrary   = "tuf/arbitrary-software"
	tufEndless     = "tuf/endless-data"
	tufExtraneous  = "tuf/extraneous-dependencies"
	tufFastForward = "tuf/fast-forward"
	tufFreeze      = "tuf/indefinite-freeze"
	tufMirrors     = "tuf/malicious-mirrors"
	tufMixAndMatch = "tuf/mix-and-match"
	tufRollback    = "tuf/rollback"
	tufKeys        = "tuf/key-compromise"
	tufWrong       = "tuf/wrong-software"
)

// Threats by the words of Uptane, of which a gateway has the vehicle's part: one unit
// with several images instead of several units.
const (
	uptaneEavesdrop     = "uptane/eavesdrop"
	uptaneDropRequest   = "uptane/drop-request"
	uptaneSlowRetrieval = "uptane/slow-retrieval"
	uptaneFreeze        = "uptane/freeze"
	uptanePartialBundle = "uptane/partial-bundle"
	uptaneRollback      = "uptane/rollback"
	uptaneEndlessData   = "uptane/endless-data"
	uptaneMixedBundles  = "uptane/mixed-bundles"
	uptaneMixAndMatch   = "uptane/mix-and-match"
	uptaneArbitrary     = "uptane/arbitrary-software"
)

// Threats by the identifiers of SUIT's information model.
const (
	suitExpired        = "THREAT.IMG.EXPIRED"
	suitExpiredOffline = "THREAT.IMG.EXPIRED.OFFLINE"
	suitIncompatible   = "THREAT.IMG.INCOMPATIBLE"
	suitFormat         = "THREAT.IMG.FORMAT"
	suitLocation       = "THREAT.IMG.LOCATION"
	suitRedirect       = "THREAT.NET.REDIRECT"
	suitOnPath         = "THREAT.NET.ONPATH"
	suitReplace        = "THREAT.IMG.REPLACE"
	suitNonAuth        = "THREAT.IMG.NON_AUTH"
	suitPrecursor      = "THREAT.UPD.WRONG_PRECURSOR"
	suitUnapproved     = "THREAT.UPD.UNAPPROVED"
	suitDisclosure     = "THREAT.IMG.DISCLOSURE"
	suitOverride       = "THREAT.MFST.OVERRIDE"
	suitExposure       = "THREAT.MFST.EXPOSURE"
	suitExtra          = "THREAT.IMG.EXTRA"
	suitKeys           = "THREAT.KEY.EXPOSURE"
	suitModification   = "THREAT.MFST.MODIFICATION"
	suitTOCTOU         = "THREAT.MFST.TOCTOU"
)

var threats = []Threat{
	{ID: tufArbitrary, Title: "arbitrary installation", Source: tufSource},
	{ID: tufEndless, Title: "endless data", Source: tufSource},
	{ID: tufExtraneous, Title: "extraneous dependencies", Source: tufSource},
	{ID: tufFastForward, Title: "fast-forward", Source: tufSource},
	{ID: tufFreeze, Title: "indefinite freeze", Source: tufSource},
	{ID: tufMirrors, Title: "malicious mirrors preventing updates", Source: tufSource},
	{ID: tufMixAndMatch, Title: "mix-and-match", Source: tufSource},
	{ID: tufRollback, Title: "rollback", Source: tufSource},
	{ID: tufKeys, Title: "vulnerability to key compromises", Source: tufSource},
	{ID: tufWrong, Title: "wrong software installation", Source: tufSource},

	{ID: uptaneEavesdrop, Title: "eavesdrop", Source: uptaneSource,
		Outside: "releases are signed and not secret; what can be read on the way is up to the transport's TLS"},
	{ID: uptaneDropRequest, Title: "drop-request", Source: uptaneSource},
	{ID: uptaneSlowRetrieval, Title: "slow retrieval", Source: uptaneSource},
	{ID: uptaneFreeze, Title: "freeze", Source: uptaneSource},
	{ID: uptanePartialBundle, Title: "partial bundle installation", Source: uptaneSource},
	{ID: uptaneRollback, Title: "rollback", Source: uptaneSource},
	{ID: uptaneEndlessData, Title: "endless data", Source: uptaneSource},
	{ID: uptaneMixedBundles, Title: "mixed bundles", Source: uptaneSource},
	{ID: uptaneMixAndMatch, Title: "mix-and-match", Source: uptaneSource},
	{ID: uptaneArbitrary, Title: "arbitrary software", Source: uptaneSource},

	{ID: suitExpired, Title: "old firmware", Source: suitSource},
	{ID: suitExpiredOffline, Title: "offline device and old firmware", Source: suitSource},
	{ID: suitIncompatible, Title: "mismatched firmware", Source: suitSource},
	{ID: suitFormat, Title: "the device misinterprets the type of payload", Source: suitSource},
	{ID: suitLocation, Title: "the device installs the payload to the wrong location", Source: suitSource},
	{ID: suitRedirect, Title: "redirection to inauthentic payload hosting", Source: suitSource},
	{ID: suitOnPath, Title: "traffic interception", Source: suitSource},
	{ID: suitReplace, Title: "payload replacement", Source: suitSource},
	{ID: suitNonAuth, Title: "unauthenticated images", Source: suitSource},
	{ID: suitPrecursor, Title: "unexpected precursor images", Source: suitSource},
	{ID: suitUnapproved, Title: "unapproved firmware", Source: suitSource},
	{ID: suitDisclosure, Title: "reverse engineering of the image", Source: suitSource,
		Outside: "images are not encrypted: whoever owns a device can read its disk, and TLS covers the way there"},
	{ID: suitOverride, Title: "overriding critical manifest elements", Source: suitSource},
	{ID: suitExposure, Title: "confidential manifest element exposure", Source: suitSource,
		Outside: "a manifest holds nothing confidential by its format, and TLS covers the way there"},
	{ID: suitExtra, Title: "extra data after the image", Source: suitSource},
	{ID: suitKeys, Title: "exposure of signing keys", Source: suitSource},
	{ID: suitModification, Title: "modification of manifest or payload before signing", Source: suitSource},
	{ID: suitTOCTOU, Title: "modification of the manifest between authentication and use", Source: suitSource},
}
