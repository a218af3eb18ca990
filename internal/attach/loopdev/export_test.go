package loopdev

import (
	"context"
	"os"
)

// AttachInSteps attaches as on a kernel before 5.8, to the device with the number.
func AttachInSteps(ctx context.Context, number int, backing *os.File) error {
	return configureDevice(ctx, number, backing, false, configureInSteps)
}
