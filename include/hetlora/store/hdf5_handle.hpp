// HDF5 for the rest of the program: move-only handles, checked calls, errors with HDF5's own reason in them.
//
// Only the sources named hdf5_* include hdf5.h; identifiers travel here as std::int64_t (HDF5's hid_t since 1.10).
// Every failing call becomes a hetlora::Error: ExitCode::input when reading or opening, ExitCode::environment when
// creating or writing (disk full, no permission). HDF5's own printing to stderr is switched off; its error stack is
// in the text of the error instead.
//
// Shapes are in elements; "row" means one index of a data set's first axis.
#pragma once

#include <concepts>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace hetlora::hdf5 {

/// Element types that this program stores, always little-endian in the file.
enum class ElementType { i8, u8, i32, i64, f32, f64, text };

template <typename T>
concept Element = std::same_as<T, std::int8_t> || std::same_as<T, std::uint8_t> || std::same_as<T, std::int32_t> ||
    std::same_as<T, std::int64_t> || std::same_as<T, float> || std::same_as<T, double>;

/// The element type of T.
template <Element T>
[[nodiscard]] constexpr ElementType element_type_of() noexcept {
    if constexpr (std::same_as<T, std::int8_t>) return ElementType::i8;
    if constexpr (std::same_as<T, std::uint8_t>) return ElementType::u8;
    if constexpr (std::same_as<T, std::int32_t>) return ElementType::i32;
    if constexpr (std::same_as<T, std::int64_t>) return ElementType::i64;
    if constexpr (std::same_as<T, float>) return ElementType::f32;
    if constexpr (std::same_as<T, double>) return ElementType::f64;
}

/// Version of the HDF5 library in use, e.g. "1.10.8".
[[nodiscard]] std::string library_version();

/// Owns one HDF5 identifier and closes it. Move-only; default-constructed it owns nothing.
class Handle {
public:
    using Closer = int (*)(std::int64_t);

    Handle() noexcept = default;
    Handle(std::int64_t id, Closer closer) noexcept : id_(id), closer_(closer) {}
    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;
    Handle(Handle&& other) noexcept;
    Handle& operator=(Handle&& other) noexcept;
    ~Handle();

    /// Closes now. @return false if HDF5 could not (a file that could not be written out); the handle is empty either
    /// way.
    bool close() noexcept;
    [[nodiscard]] std::int64_t id() const noexcept { return id_; }
    [[nodiscard]] explicit operator bool() const noexcept { return id_ >= 0; }

private:
    std::int64_t id_ = -1;
    Closer closer_ = nullptr;
};

/// A file, group or data set: something that has a place ("results/x/run.h5:/rounds") and attributes.
class Object {
public:
    Object() = default;
    Object(Handle handle, std::string where) : handle_(std::move(handle)), where_(std::move(where)) {}

    /// Where it is, for error texts: FILE or FILE:/group/name.
    [[nodiscard]] const std::string& where() const noexcept { return where_; }
    [[nodiscard]] std::int64_t id() const noexcept { return handle_.id(); }
    [[nodiscard]] explicit operator bool() const noexcept { return static_cast<bool>(handle_); }

    /// Creates or replaces a scalar attribute. Text is stored as a fixed-length UTF-8 string; HDF5 holds at most 64 KiB
    /// in an attribute, so longer text is cut at 60,000 bytes and ends with a line that says so.
    void write_attribute(const std::string& name, std::int64_t value);
    void write_attribute(const std::string& name, double value);
    void write_attribute(const std::string& name, std::string_view value);
    void write_attribute(const std::string& name, const char* value) { write_attribute(name, std::string_view(value)); }
    void write_attribute(const std::string& name, int value) { write_attribute(name, std::int64_t{value}); }
    /// Creates or replaces a 1-D attribute of fixed-length UTF-8 strings (NeXus "axes").
    void write_attribute(const std::string& name, std::span<const std::string> values);
    /// Creates or replaces a one-element attribute of the given number type (netCDF's _FillValue has its variable's).
    void write_attribute_as(ElementType type, const std::string& name, double value);

    [[nodiscard]] bool has_attribute(const std::string& name) const;
    [[nodiscard]] std::vector<std::string> attribute_names() const;
    /// True if the attribute exists and is text (of fixed or variable length).
    [[nodiscard]] bool attribute_is_text(const std::string& name) const;
    /// True if the attribute exists and is an integer.
    [[nodiscard]] bool attribute_is_integer(const std::string& name) const;
    /// Value of an attribute; a missing one or one of another kind is an input error. Text may be of fixed or variable
    /// length.
    [[nodiscard]] std::int64_t read_int(const std::string& name) const;
    [[nodiscard]] double read_double(const std::string& name) const;
    [[nodiscard]] std::string read_text(const std::string& name) const;

protected:
    bool close_object() noexcept { return handle_.close(); }

private:
    Handle handle_;
    std::string where_;
};

/// Shape of a data set to create. `unlimited` makes the first axis extensible (and the data set chunked).
struct DatasetShape {
    std::vector<std::int64_t> extent;  ///< [first axis, ...]; {} is a scalar
    bool unlimited = false;
    std::int64_t chunk_rows = 1024;  ///< rows of a chunk when unlimited
};

/// An n-dimensional array in a file.
class Dataset : public Object {
public:
    using Object::Object;

    [[nodiscard]] std::vector<std::int64_t> shape() const;
    /// Length of the first axis (1 for a scalar).
    [[nodiscard]] std::int64_t rows() const;
    /// Elements of one row: the product of all axes but the first.
    [[nodiscard]] std::int64_t row_elements() const;
    /// The stored type; an input error for a type that this program does not know.
    [[nodiscard]] ElementType type() const;

    /// Sets the length of the first axis (unlimited data sets only); new rows hold the fill value.
    void resize_rows(std::int64_t rows);
    /// Adds whole rows at the end. @pre values.size() is a multiple of row_elements()
    template <Element T>
    void append(std::span<const T> values) {
        append_raw(element_type_of<T>(), values.data(), static_cast<std::int64_t>(values.size()));
    }
    /// Writes whole rows from first_row on. @pre first_row + values.size() / row_elements() <= rows()
    template <Element T>
    void write(std::int64_t first_row, std::span<const T> values) {
        write_raw(element_type_of<T>(), first_row, values.data(), static_cast<std::int64_t>(values.size()));
    }
    /// Reads whole rows [first_row, first_row + out.size() / row_elements()) as T (HDF5 converts between numbers).
    template <Element T>
    void read(std::int64_t first_row, std::span<T> out) const {
        read_raw(element_type_of<T>(), first_row, out.data(), static_cast<std::int64_t>(out.size()));
    }
    /// Reads everything, row-major.
    template <Element T>
    [[nodiscard]] std::vector<T> read_all() const {
        std::vector<T> values(static_cast<std::size_t>(rows() * row_elements()));
        read<T>(0, values);
        return values;
    }
    /// Fixed-length (or variable-length) strings of a 1-D data set.
    [[nodiscard]] std::vector<std::string> read_strings() const;

    /// Makes this data set a dimension scale (netCDF: a coordinate variable) of that name.
    void make_scale(const std::string& name);
    /// Attaches a scale to axis `axis` of this data set. Scales must lie in the same group: netCDF readers fail
    /// otherwise.
    void attach_scale(int axis, const Dataset& scale);

private:
    void append_raw(ElementType type, const void* values, std::int64_t count);
    void write_raw(ElementType type, std::int64_t first_row, const void* values, std::int64_t count);
    void read_raw(ElementType type, std::int64_t first_row, void* out, std::int64_t count) const;
};

/// A folder of data sets inside a file. Links and attributes keep the order of their creation.
class Group : public Object {
public:
    using Object::Object;

    [[nodiscard]] bool has(const std::string& name) const;
    /// Names of the members, in the order of their creation where the file keeps it, else sorted.
    [[nodiscard]] std::vector<std::string> names() const;
    Group create_group(const std::string& name);
    [[nodiscard]] Group open_group(const std::string& name) const;
    /// Creates a data set of numbers. Floats are filled with NaN ("not measured"), integers with 0.
    Dataset create_dataset(const std::string& name, ElementType type, const DatasetShape& shape);
    /// Creates and fills a 1-D data set; never extensible, stored contiguously (can be read in place).
    template <Element T>
    Dataset create_array(const std::string& name, std::span<const T> values) {
        Dataset data =
            create_dataset(name, element_type_of<T>(), {.extent = {static_cast<std::int64_t>(values.size())}});
        data.write<T>(0, values);
        return data;
    }
    /// Creates and fills a 1-D data set of fixed-length UTF-8 strings (padded with zeros to the longest).
    Dataset create_strings(const std::string& name, std::span<const std::string> values);
    /// The same of `count` values that are asked for one at a time, twice each, in rising order.
    Dataset create_strings(const std::string& name, std::int64_t count,
                           const std::function<std::string(std::int64_t)>& value);
    [[nodiscard]] Dataset open_dataset(const std::string& name) const;

protected:
    [[nodiscard]] std::string child(const std::string& name) const;
};

/// A file; as a Group it is the root "/".
///
/// HDF5's own file locks are not taken: people read a running experiment's log, some parallel file systems have no
/// locks at all, and two writers are kept apart by the lock of the run folder (store/run_folder.hpp).
class File : public Group {
public:
    File() = default;
    /// Creates a new file; one that exists is an environment error (nothing is ever overwritten).
    [[nodiscard]] static File create(const std::filesystem::path& path);
    [[nodiscard]] static File open_read(const std::filesystem::path& path);
    [[nodiscard]] static File open_write(const std::filesystem::path& path);

    [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
    /// Hands everything written so far to the operating system.
    void flush();
    /// Flushes and closes; an environment error if HDF5 could not write it out. Data sets and groups should be gone
    /// before.
    void close();

private:
    File(Handle handle, std::filesystem::path path);
    std::filesystem::path path_;
};

}  // namespace hetlora::hdf5
