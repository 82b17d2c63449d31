import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Random;
import java.util.TreeMap;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndTimestamp;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.PartitionInfo;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.InvalidTxnStateException;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * The unmodified Java client, as a program for the tests. Every command takes BOOTSTRAP and TOPIC first; words with
 * {@code =} at the end of the line are client properties.
 */
public final class Client {
    private Client() {}

    public static void main(String[] words) throws Exception {
        List<String> plain = new ArrayList<>();
        Properties properties = new Properties();
        for (String word : words) {
            int equals = word.indexOf('=');
            if (equals > 0) {
                properties.put(word.substring(0, equals), word.substring(equals + 1));
            } else {
                plain.add(word);
            }
        }
        properties.put("bootstrap.servers", plain.get(1));
        String topic = plain.get(2);
        String[] rest = plain.subList(3, plain.size()).toArray(new String[0]);
        switch (plain.get(0)) {
            case "read" -> read(properties, topic, Path.of(rest[0]));
            case "group" -> group(properties, topic, rest[0], Path.of(rest[1]), Long.parseLong(rest[2]));
            case "times" -> times(properties, topic, Path.of(rest[0]));
            case "transactions" -> transactions(properties, topic, rest[0], Long.parseLong(rest[1]), Long.parseLong(rest[2]), rest[3]);
            case "drain" -> drain(properties, topic, Long.parseLong(rest[0]));
            default -> throw new IllegalArgumentException(plain.get(0));
        }
    }

    private static KafkaConsumer<byte[], byte[]> consumer(Properties properties) {
        properties.putIfAbsent("isolation.level", "read_committed");
        properties.putIfAbsent("auto.offset.reset", "none");
        properties.putIfAbsent("enable.auto.commit", "false");
        return new KafkaConsumer<>(properties, new ByteArrayDeserializer(), new ByteArrayDeserializer());
    }

    private static List<TopicPartition> partitions(KafkaConsumer<byte[], byte[]> consumer, String topic) {
        List<TopicPartition> all = new ArrayList<>();
        for (PartitionInfo info : consumer.partitionsFor(topic)) {
            all.add(new TopicPartition(topic, info.partition()));
        }
        return all;
    }

    /** Reads everything from the beginning until position() has reached endOffsets() in every partition. */
    private static void read(Properties properties, String topic, Path folder) throws Exception {
        long stallMax = Long.parseLong((String) properties.getOrDefault("test.stall.ms", "60000"));
        properties.remove("test.stall.ms");
        try (KafkaConsumer<byte[], byte[]> consumer = consumer(properties); Lines lines = new Lines(folder)) {
            List<TopicPartition> all = partitions(consumer, topic);
            consumer.assign(all);
            Map<TopicPartition, Long> ends = consumer.endOffsets(all);
            Map<TopicPartition, Long> starts = consumer.beginningOffsets(all);
            consumer.seekToBeginning(all);
            List<TopicPartition> open = new ArrayList<>(all);
            long records = 0;
            long progress = System.nanoTime();
            while (!open.isEmpty()) {
                long before = records;
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(200))) {
                    if (record.offset() < ends.get(new TopicPartition(topic, record.partition()))) {
                        lines.write(record);
                    }
                    records++;
                }
                boolean moved = records > before;
                for (TopicPartition partition : new ArrayList<>(open)) {
                    if (consumer.position(partition) >= ends.get(partition)) {
                        open.remove(partition);
                        moved = true;
                    }
                }
                if (moved) {
                    progress = System.nanoTime();
                }
                if (System.nanoTime() - progress > stallMax * 1_000_000L) {
                    for (TopicPartition partition : open) {
                        System.err.println("stalled: " + partition + " position " + consumer.position(partition) + " of " + ends.get(partition));
                    }
                    System.exit(3);
                }
            }
            for (TopicPartition partition : all) {
                System.out.println("partition " + partition.partition() + " start " + starts.get(partition) + " end " + ends.get(partition));
            }
            System.out.println("records " + records);
        }
    }

    /** A consumer group: writes lines, then commits, until `count` records came (by this member) or stdin ends. */
    private static void group(Properties properties, String topic, String group, Path folder, long count) throws Exception {
        properties.put("group.id", group);
        properties.putIfAbsent("auto.offset.reset", "earliest");
        boolean[] stop = new boolean[1];
        Thread watcher = new Thread(() -> {
            try {
                while (System.in.read() >= 0) {
                    // Only the end of the stream means something.
                }
            } catch (java.io.IOException e) {
                System.err.println(e);
            }
            synchronized (stop) {
                stop[0] = true;
            }
        });
        watcher.setDaemon(true);
        watcher.start();
        try (KafkaConsumer<byte[], byte[]> consumer = consumer(properties); Lines lines = new Lines(folder)) {
            consumer.subscribe(List.of(topic), new ConsumerRebalanceListener() {
                @Override
                public void onPartitionsRevoked(Collection<TopicPartition> gone) {}

                @Override
                public void onPartitionsAssigned(Collection<TopicPartition> got) {
                    System.out.println("assigned " + got.size());
                }
            });
            long records = 0;
            while (records < count) {
                synchronized (stop) {
                    if (stop[0]) {
                        break;
                    }
                }
                ConsumerRecords<byte[], byte[]> batch = consumer.poll(Duration.ofMillis(200));
                for (ConsumerRecord<byte[], byte[]> record : batch) {
                    lines.write(record);
                    records++;
                }
                if (!batch.isEmpty()) {
                    lines.flush();
                    consumer.commitSync();
                }
            }
            System.out.println("records " + records);
        }
    }

    /** offsetsForTimes for each line of the file, in all partitions: `partition time -> offset timestamp epoch`. */
    private static void times(Properties properties, String topic, Path file) throws Exception {
        try (KafkaConsumer<byte[], byte[]> consumer = consumer(properties)) {
            List<TopicPartition> all = partitions(consumer, topic);
            StringBuilder out = new StringBuilder();
            for (String line : Files.readAllLines(file)) {
                Map<TopicPartition, Long> wanted = new HashMap<>();
                for (TopicPartition partition : all) {
                    wanted.put(partition, Long.parseLong(line));
                }
                Map<Integer, OffsetAndTimestamp> found = new TreeMap<>();
                consumer.offsetsForTimes(wanted).forEach((partition, hit) -> found.put(partition.partition(), hit));
                found.forEach((partition, hit) -> {
                    out.append(partition).append(' ').append(line).append(" -> ");
                    if (hit == null) {
                        out.append("none\n");
                    } else {
                        out.append(hit.offset()).append(' ').append(hit.timestamp()).append(' ').append(hit.leaderEpoch().orElse(-1)).append('\n');
                    }
                });
            }
            System.out.print(out);
        }
    }

    /**
     * Transactions of 1 to 40 records, a third of them aborted; with "open" as last word one more is left open for ever
     * (until the broker's timeout): the process ends without closing its producer.
     */
    private static void transactions(Properties properties, String topic, String id, long seed, long records, String end) throws Exception {
        properties.put("transactional.id", id);
        properties.putIfAbsent("transaction.timeout.ms", "900000");
        properties.putIfAbsent("linger.ms", "5");
        Random random = new Random(seed);
        KafkaProducer<byte[], byte[]> producer = transactional(properties);
        int partitions = producer.partitionsFor(topic).size();
        long sent = 0;
        long committed = 0;
        int renewed = 0;
        // Begins and ends with an aborted one, so that the log has holes at both ends.
        boolean abort = true;
        while (sent < records) {
            int size = 1 + random.nextInt(40);
            try {
                producer.beginTransaction();
                for (int i = 0; i < size; i++) {
                    byte[] value = new byte[random.nextInt(400)];
                    random.nextBytes(value);
                    byte[] key = random.nextInt(5) == 0 ? null : ("k" + random.nextInt(1000)).getBytes();
                    producer.send(new ProducerRecord<>(topic, random.nextInt(partitions), null, key, value));
                }
                if (abort) {
                    producer.flush();
                    producer.abortTransaction();
                } else {
                    producer.commitTransaction();
                    committed += size;
                }
            } catch (InvalidTxnStateException refused) {
                // About once in five thousand transactions kafka-clients 4.3.1 commits before it has sent
                // anything of the transaction, and the coordinator refuses: seen in its log and in the partitions', where
                // nothing of that transaction stands. Fatal for this producer, and applications begin with a new one.
                if (++renewed > 3) {
                    throw refused;
                }
                System.err.println("a new producer after " + refused);
                producer.close(Duration.ZERO);
                producer = transactional(properties);
            }
            sent += size;
            abort = sent >= records - 40 || random.nextInt(3) == 0;
        }
        if (end.equals("open")) {
            producer.beginTransaction();
            for (int partition = 0; partition < partitions; partition++) {
                producer.send(new ProducerRecord<>(topic, partition, null, "open".getBytes(), "never committed".getBytes())).get();
            }
            System.out.println("committed " + committed);
            System.out.flush();
            Runtime.getRuntime().halt(0);
        }
        producer.close();
        System.out.println("committed " + committed);
    }

    private static KafkaProducer<byte[], byte[]> transactional(Properties properties) {
        KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(properties, new ByteArraySerializer(), new ByteArraySerializer());
        producer.initTransactions();
        return producer;
    }

    /** Reads `count` records from the beginning as fast as it can and prints one line of figures. */
    private static void drain(Properties properties, String topic, long count) throws Exception {
        try (KafkaConsumer<byte[], byte[]> consumer = consumer(properties)) {
            List<TopicPartition> all = partitions(consumer, topic);
            consumer.assign(all);
            consumer.seekToBeginning(all);
            long records = 0;
            long bytes = 0;
            long start = System.nanoTime();
            long progress = start;
            while (records < count) {
                ConsumerRecords<byte[], byte[]> batch = consumer.poll(Duration.ofMillis(1000));
                for (ConsumerRecord<byte[], byte[]> record : batch) {
                    records++;
                    bytes += Math.max(record.serializedKeySize(), 0) + Math.max(record.serializedValueSize(), 0);
                }
                long now = System.nanoTime();
                if (!batch.isEmpty()) {
                    progress = now;
                } else if (now - progress > 60_000_000_000L) {
                    throw new IllegalStateException("stalled after " + records + " records");
                }
            }
            double seconds = (System.nanoTime() - start) / 1e9;
            System.out.println("{\"records\":" + records + ",\"bytes\":" + bytes + ",\"seconds\":" + seconds + "}");
        }
    }
}
