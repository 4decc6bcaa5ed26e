// Package mqtt is a device's link to its fleet over MQTT 3.1.1, and the only user
// of the paho library.
//
// A Link receives what the device should run, reports what it does, and reads
// ranges of blobs. It never needs the broker to remember a session: everything
// that steers is retained, everything that reports is repeated until it was
// acknowledged, and ranges are asked for again. So a broker may be restarted,
// replaced, or be another one of a cluster, at any instant.
//
// paho is kept on a short lead. Each connection gets a fresh paho client, since
// its automatic reconnection has neither jitter nor a way to forget a message
// that has been overtaken; each connection is wrapped (guard), since paho would
// allocate whatever length a 5-byte header names, and does not limit most of its
// writes; a SUBSCRIBE that was refused is noticed, since paho does not call it an
// error; and handlers only hand messages on, since a handler that waits for the
// client blocks it for good.
//
// Who may use the link is decided by TLS: the broker's certificate is checked
// against the roots in Config, and the device's certificate, where it has one,
// carries its id as common name. What is said on the link is trusted for
// nothing: statements and manifests are signed, and see transport.Verified.
package mqtt
