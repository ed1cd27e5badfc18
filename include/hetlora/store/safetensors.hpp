// Reading and writing safetensors files: the format of Hugging Face checkpoints and PEFT adapters.
//
//     8 bytes   n, little-endian unsigned: length of the header
//     n bytes   JSON object  name -> {"dtype", "shape", "data_offsets": [begin, end)}, maybe "__metadata__"
//     the rest  the tensors' bytes, row-major, little-endian, without gaps or overlaps
//
// Files are mapped, not read: MPI ranks on one node share the pages, and a tensor costs memory when it is touched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace hetlora {

/// Bytes per element of a safetensors dtype ("F32", "BF16", ...); 0 for a name that this program does not know.
[[nodiscard]] std::size_t dtype_bytes(std::string_view dtype) noexcept;

/// A read-only mapping of a whole file. Move-only; the file must not shrink while it is mapped.
class MappedFile {
public:
    /// @throws Error (input) if the file is missing, is no regular file or may not be read.
    explicit MappedFile(const std::filesystem::path& path);
    ~MappedFile();
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return {data_, size_}; }

private:
    const std::byte* data_ = nullptr;
    std::size_t size_ = 0;
};

/// Takes the whole pages of a part of a mapping out of this process's memory: they stay in the system's page cache, and
/// come back if they are read again. For large parts that were just copied.
void drop_pages(std::span<const std::byte> mapped) noexcept;

/// What the header says of one tensor.
struct TensorInfo {
    std::string name;
    std::string dtype;                ///< as in the file: "F32", "F16", "BF16", "I64", ...
    std::vector<std::int64_t> shape;  ///< row-major; empty for a scalar
    std::size_t begin = 0;            ///< first byte, counted from the end of the header
    std::size_t end = 0;              ///< one past the last byte
};

/// One safetensors file, its header fully validated when it is opened.
class SafetensorsFile {
public:
    /// @throws Error (input) naming the file, the tensor and a mend: missing, truncated or foreign file; malformed
    ///         JSON; duplicate names; unknown dtype; shape and bytes that disagree; gaps, overlaps, wrong ends.
    explicit SafetensorsFile(const std::filesystem::path& path);

    [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
    /// All tensors, by name.
    [[nodiscard]] const std::map<std::string, TensorInfo, std::less<>>& tensors() const noexcept { return tensors_; }
    [[nodiscard]] const std::map<std::string, std::string>& metadata() const noexcept { return metadata_; }
    [[nodiscard]] std::vector<std::string> names() const;
    [[nodiscard]] bool contains(std::string_view name) const { return tensors_.contains(name); }
    /// @throws Error (input) if the file has no such tensor.
    [[nodiscard]] const TensorInfo& info(std::string_view name) const;
    /// The tensor's bytes inside the mapping: valid as long as this object. Foreign files may leave them unaligned
    /// for their dtype: copy with memcpy, or check before casting.
    /// @throws Error (input) if the file has no such tensor.
    [[nodiscard]] std::span<const std::byte> bytes(std::string_view name) const;
    /// The whole file, header included.
    [[nodiscard]] std::span<const std::byte> file_bytes() const noexcept { return file_.bytes(); }

private:
    std::filesystem::path path_;
    MappedFile file_;
    std::size_t data_begin_ = 0;
    std::map<std::string, TensorInfo, std::less<>> tensors_;
    std::map<std::string, std::string> metadata_;
};

/// All tensors of a Hugging Face model folder: `model.safetensors`, or the shards that
/// `model.safetensors.index.json` lists (used only when there is no `model.safetensors`).
class CheckpointFolder {
public:
    /// @throws Error (input) if neither is there, a shard is broken or missing, or index and shards disagree.
    explicit CheckpointFolder(const std::filesystem::path& folder);

    [[nodiscard]] const std::filesystem::path& folder() const noexcept { return folder_; }
    [[nodiscard]] std::vector<std::string> names() const;
    [[nodiscard]] bool contains(std::string_view name) const { return shard_of_.contains(name); }
    /// @throws Error (input) if no shard has such a tensor.
    [[nodiscard]] const TensorInfo& info(std::string_view name) const;
    /// @see SafetensorsFile::bytes
    [[nodiscard]] std::span<const std::byte> bytes(std::string_view name) const;
    /// SHA-256 (64 hex digits) of the files' content, one after another in the order of their names:
    /// the same as `cat model*.safetensors | sha256sum`.
    [[nodiscard]] std::string sha256() const;

private:
    [[nodiscard]] const SafetensorsFile& shard(std::string_view name) const;

    std::filesystem::path folder_;
    std::vector<SafetensorsFile> files_;  ///< in the order of their names
    std::map<std::string, std::size_t, std::less<>> shard_of_;
};

/// What a base is, by content: SHA-256 (64 hex digits) over CheckpointFolder::sha256 and config.json, whose values are
/// taken in the order of their names without those that only say who wrote it. Of a file (GGUF) it is its SHA-256.
/// @throws Error (input) for a folder without weights or with a config.json that is no JSON
[[nodiscard]] std::string base_identity_sha256(const std::filesystem::path& folder);

/// A tensor to write; `bytes` holds its elements row-major, little-endian.
struct TensorData {
    std::string name;
    std::string dtype;
    std::vector<std::int64_t> shape;
    std::span<const std::byte> bytes;
};

/// Writes a safetensors file all at once or not at all: temporary file in the same folder, fsync, rename, fsync of
/// the folder. Every tensor starts at a multiple of its element size. Equal input gives equal bytes.
/// @throws Error (bug) for a name used twice, an unknown dtype or bytes that do not fit the shape;
///         Error (environment) if the disk refuses.
void write_safetensors(const std::filesystem::path& path, std::span<const TensorData> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace hetlora
