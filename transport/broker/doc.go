// Package broker is the desk's end of the link: an MQTT broker (mochi) with a
// server of blocks in the same process, the certificates for both sides, and
// publishing. It is for a desk, a plant and the lab; a fleet that outgrows it
// uses any MQTT 3.1.1 broker, with the block server beside it as a client (Serve).
//
// The broker believes nobody: packets are limited before the client is known, a
// client is the device that its certificate (or password) names, and a device
// reaches its own topics only, by one access hook, since mochi lets pass what any
// hook allows. Every subscription is granted QoS 0: mochi writes QoS 1 messages
// under a lock that the publisher also takes, so that one frozen device would
// stop every publisher. Retained messages and repetition make up for it. Blocks
// go out only on request, and only a few at a time for each device.
package broker
