// The unmodified franz-go client, as a program for the tests.
//
//	client read BOOTSTRAP TOPIC FOLDER            from the beginning to the end offsets of the start, then checks that no more comes
//	client group BOOTSTRAP TOPIC GROUP FOLDER N   a consumer group: writes lines, then commits, until N records or the end of stdin
//
// One file per partition with one line per record: `offset timestamp type epoch key value headers`. Bytes up to 24
// are hex after an `x`, longer ones `#length:sha256`, null is `-`. Headers are `key=value` joined by commas, `.` if
// there are none.
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const stallMax = 60 * time.Second

func main() {
	var err error
	switch {
	case len(os.Args) == 5 && os.Args[1] == "read":
		err = read(os.Args[2], os.Args[3], os.Args[4])
	case len(os.Args) == 7 && os.Args[1] == "group":
		err = group(os.Args[2], os.Args[3], os.Args[4], os.Args[5], os.Args[6])
	default:
		err = fmt.Errorf("wrong words: %q", os.Args[1:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type lines struct {
	folder string
	files  map[int32]*bufio.Writer
	line   []byte
}

func newLines(folder string) (*lines, error) {
	return &lines{folder: folder, files: map[int32]*bufio.Writer{}}, os.MkdirAll(folder, 0o755)
}

func (l *lines) write(r *kgo.Record) error {
	file := l.files[r.Partition]
	if file == nil {
		f, err := os.OpenFile(filepath.Join(l.folder, "p"+strconv.Itoa(int(r.Partition))), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		file = bufio.NewWriterSize(f, 1<<16)
		l.files[r.Partition] = file
	}
	b := l.line[:0]
	b = strconv.AppendInt(b, r.Offset, 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, r.Timestamp.UnixMilli(), 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(r.Attrs.TimestampType()), 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(r.LeaderEpoch), 10)
	b = append(b, ' ')
	b = appendBytes(b, r.Key)
	b = append(b, ' ')
	b = appendBytes(b, r.Value)
	b = append(b, ' ')
	for i, h := range r.Headers {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendBytes(b, []byte(h.Key))
		b = append(b, '=')
		b = appendBytes(b, h.Value)
	}
	if len(r.Headers) == 0 {
		b = append(b, '.')
	}
	b = append(b, '\n')
	l.line = b
	_, err := file.Write(b)
	return err
}

func (l *lines) flush() error {
	for _, f := range l.files {
		if err := f.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func appendBytes(b, bytes []byte) []byte {
	if bytes == nil {
		return append(b, '-')
	}
	if len(bytes) <= 24 {
		b = append(b, 'x')
		return hex.AppendEncode(b, bytes)
	}
	b = append(b, '#')
	b = strconv.AppendInt(b, int64(len(bytes)), 10)
	b = append(b, ':')
	sum := sha256.Sum256(bytes)
	return hex.AppendEncode(b, sum[:])
}

// listOffsets asks every leader by itself, as kadm would: franz-go's client shards the request.
func listOffsets(ctx context.Context, cl *kgo.Client, topic string, time int64) (map[int32]int64, error) {
	meta := kmsg.NewPtrMetadataRequest()
	t := kmsg.NewMetadataRequestTopic()
	t.Topic = kmsg.StringPtr(topic)
	meta.Topics = append(meta.Topics, t)
	m, err := meta.RequestWith(ctx, cl)
	if err != nil {
		return nil, err
	}
	req := kmsg.NewPtrListOffsetsRequest()
	req.IsolationLevel = 1
	rt := kmsg.NewListOffsetsRequestTopic()
	rt.Topic = topic
	for _, p := range m.Topics[0].Partitions {
		rp := kmsg.NewListOffsetsRequestTopicPartition()
		rp.Partition = p.Partition
		rp.Timestamp = time
		rp.CurrentLeaderEpoch = -1
		rt.Partitions = append(rt.Partitions, rp)
	}
	req.Topics = append(req.Topics, rt)
	out := map[int32]int64{}
	for _, shard := range cl.RequestSharded(ctx, req) {
		if shard.Err != nil {
			return nil, shard.Err
		}
		for _, t := range shard.Resp.(*kmsg.ListOffsetsResponse).Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					return nil, err
				}
				out[p.Partition] = p.Offset
			}
		}
	}
	return out, nil
}

func read(bootstrap, topic, folder string) error {
	ctx := context.Background()
	asker, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(bootstrap, ",")...))
	if err != nil {
		return err
	}
	defer asker.Close()
	starts, err := listOffsets(ctx, asker, topic, -2)
	if err != nil {
		return err
	}
	ends, err := listOffsets(ctx, asker, topic, -1)
	if err != nil {
		return err
	}
	from := map[int32]kgo.Offset{}
	for p := range starts {
		from[p] = kgo.NewOffset().AtStart()
	}
	cl, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(bootstrap, ",")...),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		// So that a partition that ends in markers is seen to its end; they are not written.
		kgo.KeepControlRecords(),
	)
	if err != nil {
		return err
	}
	defer cl.Close()
	out, err := newLines(folder)
	if err != nil {
		return err
	}
	open := map[int32]bool{}
	for p, end := range ends {
		if starts[p] < end {
			open[p] = true
		}
	}
	records := 0
	progress := time.Now()
	// Rounds in which nothing came, one after the other: rounds and not seconds, since a test may stop this process.
	quiet, quietMax := 0, 2
	if text := os.Getenv("EVERLOG_QUIET_ROUNDS"); text != "" {
		if quietMax, err = strconv.Atoi(text); err != nil {
			return err
		}
	}
	for len(open) > 0 {
		quiet++
		round, cancel := context.WithTimeout(ctx, 2*time.Second)
		fetches := cl.PollFetches(round)
		cancel()
		var failed error
		fetches.EachError(func(t string, p int32, err error) {
			if round.Err() == nil || p >= 0 {
				failed = fmt.Errorf("partition %d: %w", p, err)
			}
		})
		if failed != nil {
			return failed
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset >= ends[r.Partition] {
				delete(open, r.Partition)
				return
			}
			if !r.Attrs.IsControl() {
				if err := out.write(r); err != nil {
					failed = err
				}
				records++
			}
			progress = time.Now()
			quiet = 0
			if r.Offset == ends[r.Partition]-1 {
				delete(open, r.Partition)
			}
		})
		if failed != nil {
			return failed
		}
		// An archive has no control records: a partition whose last offsets hold nothing is over once a while passes
		// in which nothing comes. The comparison with the other read tells whether something was missing.
		if quiet >= quietMax && records > 0 {
			break
		}
		if time.Since(progress) > stallMax {
			return fmt.Errorf("stalled after %d records; open %v, ends %v", records, open, ends)
		}
	}
	for p := range ends {
		fmt.Printf("partition %d start %d end %d\n", p, starts[p], ends[p])
	}
	fmt.Println("records", records)
	return out.flush()
}

func group(bootstrap, topic, name, folder, countText string) error {
	count, err := strconv.Atoi(countText)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	cl, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(bootstrap, ",")...),
		kgo.ConsumerGroup(name),
		kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.DisableAutoCommit(),
	)
	if err != nil {
		return err
	}
	out, err := newLines(folder)
	if err != nil {
		return err
	}
	records := 0
	for records < count {
		fetches := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			break
		}
		var failed error
		fetches.EachError(func(_ string, p int32, err error) {
			// The member lost its session, or could not join yet. The client says so and goes on by itself.
			var session *kgo.ErrGroupSession
			if errors.As(err, &session) {
				fmt.Fprintln(os.Stderr, "goes on:", err)
				return
			}
			failed = fmt.Errorf("partition %d: %w", p, err)
		})
		fetches.EachRecord(func(r *kgo.Record) {
			if err := out.write(r); err != nil {
				failed = err
			}
			records++
		})
		if failed != nil {
			return failed
		}
		if err := out.flush(); err != nil {
			return err
		}
		if err := cl.CommitUncommittedOffsets(context.Background()); err != nil {
			return err
		}
	}
	fmt.Println("records", records)
	// Leaves the group, or its partitions would stay with a dead member for the session timeout.
	cl.Close()
	return nil
}
