package crypt

import "errors"

// Opening keys.
var (
	// ErrWrongKey: no given secret opens a slot, or a bag belongs to another
	// volume key. An altered slot cannot be told from a wrong secret.
	ErrWrongKey = errors.New("wrong key")
	// ErrAuth: the right key was there and the bytes do not authenticate:
	// a block, a bag or a slot was altered.
	ErrAuth = errors.New("authentication failed")
	// ErrWiped: the key was wiped before it was used.
	ErrWiped = errors.New("key is wiped")
)

// Making keys and secrets.
var (
	// ErrMode: unknown cipher mode.
	ErrMode = errors.New("unknown cipher")
	// ErrEmptyPassphrase: a passphrase of no bytes.
	ErrEmptyPassphrase = errors.New("passphrase is empty")
	// ErrLongPassphrase: a passphrase longer than MaxPassphrase.
	ErrLongPassphrase = errors.New("passphrase is too long")
	// ErrPrintableKeyFile: a key file of text only; it is most likely a passphrase.
	ErrPrintableKeyFile = errors.New("key file holds only printable text")
	// ErrKeyFileSize: a key file that is not 32 to 64 bytes.
	ErrKeyFileSize = errors.New("key file is not 32 to 64 bytes")
	// ErrRecoveryKey: a recovery key that was mistyped. See RecoveryKeyError.
	ErrRecoveryKey = errors.New("recovery key is mistyped")
	// ErrKDF: Argon2 parameters outside the bounds of KDF.
	ErrKDF = errors.New("argon2 parameters out of bounds")
)

// Keyring and bag.
var (
	// ErrKeyring: the keyring's bytes are not in canonical form.
	ErrKeyring = errors.New("malformed keyring")
	// ErrKeyringVersion: a keyring of a version this code does not know.
	ErrKeyringVersion = errors.New("unknown keyring version")
	// ErrKeyringStore: the keyring belongs to another store.
	ErrKeyringStore = errors.New("keyring belongs to another store")
	// ErrNoSlot: no slot of that number.
	ErrNoSlot = errors.New("no such slot")
	// ErrNoBag: no bag for that volume.
	ErrNoBag = errors.New("no key bag for this volume")
	// ErrSlotData: a slot's own data is too long, or not in canonical form.
	ErrSlotData = errors.New("malformed slot data")
	// ErrFull: the keyring or the bag has no room for another entry.
	ErrFull = errors.New("too many entries")
	// ErrKeyConflict: a bag already has this data key under another mode.
	ErrKeyConflict = errors.New("data key is already in the bag with another cipher")
)

// ErrBuffer: a buffer of the wrong length, without the slack it needs, or a
// wrong number of homes or tags. A bug of the caller; nothing was touched.
var ErrBuffer = errors.New("wrong buffer size")
