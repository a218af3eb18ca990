// Package crypt holds everything that touches a key: volume keys and the slots
// that wrap them, data keys and the bags that carry them, derivation, the block
// ciphers and the MACs. Nothing outside this package sees key bytes.
//
// The layers, from the outside in:
//
//	Secret --opens--> slot --wraps--> VolumeKey --seals--> Bag --holds--> DataKey --encrypts--> blocks
//	                                  VolumeKey --derives-> Authority: MACs of head and log, nonce hedge
//
// A volume key authenticates and never encrypts a block; a data key encrypts
// blocks and authenticates nothing else. A data key is looked up in the bag of
// the volume that reads, never in a table of the process.
//
// Secrets live in locked memory outside the Go heap (see [MemoryStatus]) and
// are gone after Wipe. Every secret type prints as "[secret]". What Go's own
// cipher objects hold cannot be wiped; docs/threat-model.md says what follows.
//
// docs/crypto.md is the normative text for all bytes made here.
package crypt
