//! The magic bytes of what a device may carry, and where they lie.

use super::Piece;

/// Where magic bytes lie.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// From the start of the device.
    Start(u64),
    /// Before the end of the device.
    End(u64),
    /// Before the end of the device after it was rounded down to a multiple of the first number.
    RoundedEnd(u64, u64),
}

/// One format.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signature {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    magic: &'static [u8],
    places: &'static [Place],
}

impl Signature {
    /// Where in `piece` the magic bytes are.
    pub(super) fn find(&self, piece: &Piece<'_>) -> Option<u64> {
        let here = |offset: &u64| piece.at(*offset, self.magic.len()) == Some(self.magic);
        self.offsets(piece.device_bytes).find(here)
    }

    /// Where on a device of `bytes` bytes the magic bytes would be.
    pub(super) fn offsets(&self, bytes: u64) -> impl Iterator<Item = u64> {
        self.places.iter().filter_map(move |place| match *place {
            Place::Start(offset) => Some(offset),
            Place::End(before) => bytes.checked_sub(before),
            Place::RoundedEnd(multiple, before) => (bytes - bytes % multiple).checked_sub(before),
        })
    }

    #[cfg(test)]
    pub(super) fn magic(&self) -> &'static [u8] {
        self.magic
    }
}

const fn sign(
    name: &'static str,
    what: &'static str,
    magic: &'static [u8],
    places: &'static [Place],
) -> Signature {
    Signature {
        name,
        what,
        magic,
        places,
    }
}

use Place::{End, RoundedEnd, Start};

/// One word may have several rows. The order is that of telling.
pub(super) const SIGNATURES: &[Signature] = &[
    sign(
        "gpt",
        "a GPT partition table",
        b"EFI PART",
        &[Start(512), Start(4096), End(512), End(4096)],
    ),
    // A FAT or NTFS boot sector ends like this too; whoever calls it looks for them as well.
    sign(
        "mbr",
        "an MBR partition table or a boot sector",
        &[0x55, 0xaa],
        &[Start(510)],
    ),
    // The second and third places are copies of the superblock, with blocks of 1 and of 4 KiB.
    sign(
        "ext",
        "an ext2, ext3 or ext4 file system",
        &[0x53, 0xef],
        &[
            Start(1024 + 56),
            Start((8193 << 10) + 56),
            Start((32768 << 12) + 56),
        ],
    ),
    sign("xfs", "an XFS file system", b"XFSB", &[Start(0)]),
    sign(
        "btrfs",
        "a btrfs file system",
        b"_BHRfS_M",
        &[
            Start((64 << 10) + 64),
            Start((64 << 20) + 64),
            Start((256 << 30) + 64),
        ],
    ),
    sign(
        "lvm",
        "an LVM physical volume",
        b"LABELONE",
        &[Start(0), Start(512), Start(1024), Start(1536)],
    ),
    sign(
        "luks",
        "a LUKS volume",
        &[b'L', b'U', b'K', b'S', 0xba, 0xbe],
        &[Start(0)],
    ),
    sign(
        "luks",
        "a LUKS volume",
        &[b'S', b'K', b'U', b'L', 0xba, 0xbe],
        &[
            Start(0x4000),
            Start(0x8000),
            Start(0x1_0000),
            Start(0x2_0000),
            Start(0x4_0000),
            Start(0x8_0000),
            Start(0x10_0000),
            Start(0x20_0000),
            Start(0x40_0000),
        ],
    ),
    sign("swap", "swap space", b"SWAPSPACE2", SWAP),
    sign("swap", "swap space", b"SWAP-SPACE", SWAP),
    sign("swap", "a hibernation image", b"S1SUSPEND\0", SWAP),
    sign("swap", "a hibernation image", b"S2SUSPEND\0", SWAP),
    sign("raid", "a member of an md RAID", &MD, MD_PLACES),
    sign("raid", "a member of an md RAID", &MD_SWAPPED, MD_PLACES),
    sign(
        "raid",
        "a member of a firmware RAID (Intel)",
        b"Intel Raid ISM Cfg Sig. ",
        &[End(1024), End(8192)],
    ),
    sign(
        "raid",
        "a member of a firmware RAID (DDF)",
        &[0xde, 0x11, 0xde, 0x11],
        &[End(512), End(4096)],
    ),
    // The first uberblocks of the four labels; one of them is written with every transaction group.
    sign("zfs", "a member of a ZFS pool", &ZFS, ZFS_PLACES),
    sign("zfs", "a member of a ZFS pool", &ZFS_SWAPPED, ZFS_PLACES),
    sign("zfs", "a member of a ZFS pool", ZFS_NVLIST, ZFS_LABELS),
    sign(
        "bcache",
        "a bcache device",
        &[
            0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba,
            0x6d, 0x81,
        ],
        &[Start(4096 + 24)],
    ),
    sign(
        "bcachefs",
        "a bcachefs file system",
        &[
            0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9, 0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d,
            0xf7, 0xef,
        ],
        &[Start(4096 + 24)],
    ),
    sign(
        "ceph",
        "a Ceph BlueStore device",
        b"bluestore block device",
        &[Start(0)],
    ),
    sign(
        "f2fs",
        "an F2FS file system",
        &[0x10, 0x20, 0xf5, 0xf2],
        &[Start(1024), Start(1024 + 4096)],
    ),
    sign(
        "nilfs",
        "a NILFS2 file system",
        &[0x34, 0x34],
        &[Start(1024 + 6)],
    ),
    sign(
        "erofs",
        "an EROFS file system",
        &[0xe2, 0xe1, 0xf5, 0xe0],
        &[Start(1024)],
    ),
    sign("squashfs", "a SquashFS file system", b"hsqs", &[Start(0)]),
    sign("jfs", "a JFS file system", b"JFS1", &[Start(32 << 10)]),
    sign(
        "reiserfs",
        "a ReiserFS file system",
        b"ReIsEr",
        &[Start((64 << 10) + 52), Start((8 << 10) + 52)],
    ),
    sign(
        "ocfs2",
        "an OCFS2 file system",
        b"OCFSV2",
        &[Start(1024), Start(2048), Start(4096), Start(8192)],
    ),
    sign(
        "gfs2",
        "a GFS2 file system",
        &[0x01, 0x16, 0x19, 0x70],
        &[Start(64 << 10)],
    ),
    sign(
        "iso9660",
        "an ISO 9660 image",
        b"CD001",
        &[Start((32 << 10) + 1)],
    ),
    sign("ntfs", "an NTFS file system", b"NTFS    ", &[Start(3)]),
    sign("exfat", "an exFAT file system", b"EXFAT   ", &[Start(3)]),
    sign("fat", "a FAT file system", b"FAT12   ", &[Start(54)]),
    sign("fat", "a FAT file system", b"FAT16   ", &[Start(54)]),
    sign("fat", "a FAT file system", b"FAT32   ", &[Start(82)]),
    sign("apfs", "an APFS container", b"NXSB", &[Start(32)]),
    sign("bitlocker", "a BitLocker volume", b"-FVE-FS-", &[Start(3)]),
    sign(
        "vmfs",
        "a VMFS volume",
        &[0x0d, 0xd0, 0x01, 0xc0],
        &[Start(1 << 20)],
    ),
    sign("oracleasm", "an Oracle ASM disk", b"ORCLDISK", &[Start(32)]),
    sign(
        "drbd",
        "a DRBD device",
        &[0x83, 0x74, 0x02],
        &[RoundedEnd(4096, 4096 - 60)],
    ),
];

/// Ten bytes before the end of the first page, whatever its size.
const SWAP: &[Place] = &[
    Start((4 << 10) - 10),
    Start((8 << 10) - 10),
    Start((16 << 10) - 10),
    Start((32 << 10) - 10),
    Start((64 << 10) - 10),
];

const MD: [u8; 4] = 0xa92b_4efc_u32.to_le_bytes();
const MD_SWAPPED: [u8; 4] = 0xa92b_4efc_u32.to_be_bytes();
/// Versions 1.1, 1.2, 1.0 and 0.90.
const MD_PLACES: &[Place] = &[
    Start(0),
    Start(4096),
    RoundedEnd(4096, 8192),
    RoundedEnd(64 << 10, 64 << 10),
];

const ZFS: [u8; 8] = 0x00ba_b10c_u64.to_le_bytes();
const ZFS_SWAPPED: [u8; 8] = 0x00ba_b10c_u64.to_be_bytes();
/// The name by which the list of a pool's properties begins, behind its XDR header.
const ZFS_NVLIST: &[u8] = b"version\0";
const ZFS_LABELS: &[Place] = &[
    Start((16 << 10) + 24),
    Start((256 << 10) + (16 << 10) + 24),
    RoundedEnd(256 << 10, (512 << 10) - (16 << 10) - 24),
    RoundedEnd(256 << 10, (256 << 10) - (16 << 10) - 24),
];
const ZFS_PLACES: &[Place] = &[
    Start(128 << 10),
    Start((256 << 10) + (128 << 10)),
    RoundedEnd(256 << 10, (512 << 10) - (128 << 10)),
    RoundedEnd(256 << 10, (256 << 10) - (128 << 10)),
];
