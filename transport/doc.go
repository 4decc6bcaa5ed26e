// Package transport is the vocabulary between a fleet and its devices: topics,
// messages, the header of a block of data, and the limits on all of them.
//
// A desk tells a device what it should run (Want); the device says what it runs
// (State), how far it is (Progress), what happened on the way (Event) and how it
// ended (Verdict); and it pulls the bytes of a release range by range (Get and
// BlockHeader). Every message is a small JSON object, except blocks, which are 40
// bytes of header and then data. FORMAT.md beside this file is the table that a
// stranger needs to write the other side in another language.
//
// Nothing here is trusted because it arrived: statements, metadata and manifests
// carry their own signatures (package updater/trust), and bytes of a blob are
// checked against signed hashes (Verified). The checks in this package only see
// to it that a message has the promised shape and size before anybody looks at
// what it says.
//
// Sizes and offsets are in bytes, times in seconds. This package knows no MQTT
// library; see transport/mqtt for the device and transport/broker for the desk.
package transport
