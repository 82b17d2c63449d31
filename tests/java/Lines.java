import java.io.BufferedOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HashMap;
import java.util.Map;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.common.header.Header;

/**
 * The tests' text form of a record, the same from all three clients:
 * {@code offset timestamp type epoch key value headers}. Bytes up to 24 are hex after an {@code x}, longer ones
 * {@code #length:sha256}, null is {@code -}. Headers are {@code key=value} joined by commas, {@code .} if there are none.
 */
final class Lines implements AutoCloseable {
    private static final byte[] HEX = "0123456789abcdef".getBytes(StandardCharsets.US_ASCII);
    private final MessageDigest sha;
    private final Path folder;
    private final Map<Integer, OutputStream> files = new HashMap<>();
    private final StringBuilder line = new StringBuilder();

    Lines(Path folder) throws IOException, NoSuchAlgorithmException {
        this.folder = folder;
        this.sha = MessageDigest.getInstance("SHA-256");
        Files.createDirectories(folder);
    }

    void write(ConsumerRecord<byte[], byte[]> record) throws IOException {
        line.setLength(0);
        line.append(record.offset()).append(' ').append(record.timestamp()).append(' ');
        line.append(record.timestampType().id).append(' ').append(record.leaderEpoch().orElse(-1)).append(' ');
        bytes(record.key());
        line.append(' ');
        bytes(record.value());
        line.append(' ');
        boolean none = true;
        for (Header header : record.headers()) {
            if (!none) {
                line.append(',');
            }
            none = false;
            bytes(header.key().getBytes(StandardCharsets.UTF_8));
            line.append('=');
            bytes(header.value());
        }
        if (none) {
            line.append('.');
        }
        line.append('\n');
        file(record.partition()).write(line.toString().getBytes(StandardCharsets.US_ASCII));
    }

    void flush() throws IOException {
        for (OutputStream file : files.values()) {
            file.flush();
        }
    }

    @Override
    public void close() throws IOException {
        for (OutputStream file : files.values()) {
            file.close();
        }
    }

    private OutputStream file(int partition) throws IOException {
        OutputStream file = files.get(partition);
        if (file == null) {
            file = new BufferedOutputStream(
                    Files.newOutputStream(folder.resolve("p" + partition), StandardOpenOption.CREATE, StandardOpenOption.APPEND),
                    1 << 16);
            files.put(partition, file);
        }
        return file;
    }

    private void bytes(byte[] bytes) {
        if (bytes == null) {
            line.append('-');
            return;
        }
        byte[] shown = bytes;
        if (bytes.length > 24) {
            line.append('#').append(bytes.length).append(':');
            shown = sha.digest(bytes);
        } else {
            line.append('x');
        }
        for (byte b : shown) {
            line.append((char) HEX[(b >> 4) & 15]).append((char) HEX[b & 15]);
        }
    }
}
