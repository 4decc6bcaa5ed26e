package broker

import (
	"context"
	"fmt"
	"sort"
	"strconv"
	"strings"

	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/transport/mqtt"
)

// PublishMetadata publishes TUF metadata files as retained messages, in the
// order in which they refer to each other, the timestamp last: a device that
// looks in between finds the old set or the new one. The versions before the last
// are cleared, except those of the root, which late devices need one by one.
//
// Repeating it is safe.
func PublishMetadata(ctx context.Context, c *mqtt.Client, files map[string][]byte) error {
	names := make([]string, 0, len(files))
	for name := range files {
		if err := transport.CheckMetaName(name); err != nil {
			return err
		}
		names = append(names, name)
	}
	sort.Slice(names, func(i, j int) bool {
		a, b := metaOrder(names[i]), metaOrder(names[j])
		if a != b {
			return a < b
		}
		return names[i] < names[j]
	})
	for _, name := range names {
		data := files[name]
		if len(data) > transport.MaxMeta {
			return fmt.Errorf("publish %s: %d bytes, at most %d", name, len(data), transport.MaxMeta)
		}
		if err := publishMeta(ctx, c, name, data); err != nil {
			return err
		}
	}
	for _, name := range names {
		n, role, _ := strings.Cut(name, ".")
		v, err := strconv.ParseUint(n, 10, 32)
		if err != nil || v < 3 || role == "root.json" {
			continue
		}
		// One back stays, for a device that is in the middle of reading.
		old := fmt.Sprintf("%d.%s", v-2, role)
		if _, ok := files[old]; ok {
			continue
		}
		if err := publishMeta(ctx, c, old, nil); err != nil {
			return err
		}
	}
	return nil
}

func metaOrder(name string) int {
	switch {
	case strings.HasSuffix(name, "root.json"):
		return 0
	case strings.HasSuffix(name, "snapshot.json"):
		return 2
	case strings.HasSuffix(name, "timestamp.json"):
		return 3
	}
	return 1
}

func publishMeta(ctx context.Context, c *mqtt.Client, name string, data []byte) error {
	topic, err := transport.MetaTopic(name)
	if err != nil {
		return err
	}
	return c.Publish(ctx, topic, 1, true, data)
}

// PublishWant tells a device what it should run, once the broker has
// acknowledged it, also when the device is away. Repeating it is safe.
func PublishWant(ctx context.Context, c *mqtt.Client, device string, w transport.Want) error {
	if err := transport.CheckID(device); err != nil {
		return err
	}
	data, err := w.Encode()
	if err != nil {
		return err
	}
	return c.Publish(ctx, transport.Topic(device, transport.KindWant), 1, true, data)
}
