// Package snapshot is what is known of volumes, snapshots and clones without a
// key: names, sizes and times, and what follows from them alone. It opens no
// store and changes none.
//
// Keep says which snapshots a policy ("7 daily, 4 weekly") keeps. Whoever
// deletes the others asks first, and refuses a policy that IsEmpty: it is more
// likely a forgotten option than a wish.
package snapshot
