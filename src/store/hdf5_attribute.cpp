// Attributes of files, groups and data sets: see hetlora/store/hdf5_handle.hpp.
#include <algorithm>
#include <vector>

#include "hdf5_internal.hpp"

namespace hetlora::hdf5 {

using namespace internal;

namespace {

constexpr std::size_t max_text_bytes = 60000;  // an attribute's object header message holds 64 KiB at most

std::string named(const std::string& where, const std::string& name) { return where + " @" + name; }

void replace(const Object& object, const std::string& name, hid_t type, hid_t type_in_memory, hid_t space,
             const void* data) {
    const std::string where = named(object.where(), name);
    const htri_t there = H5Aexists(object.id(), name.c_str());
    if (check(there, Doing::writing, "look for the attribute", where) > 0) {
        Handle old(check(H5Aopen(object.id(), name.c_str(), H5P_DEFAULT), Doing::writing, "open the attribute", where),
                   close_attribute);
        const Handle old_type(check(H5Aget_type(old.id()), Doing::writing, "open the attribute", where), close_type);
        if (H5Tequal(old_type.id(), type) > 0) {
            // Overwritten in place: nothing is freed or allocated in the file, which matters for committed_rounds.
            check(H5Awrite(old.id(), type_in_memory, data), Doing::writing, "write the attribute", where);
            return;
        }
        old = Handle();  // nothing of it may be open when it goes
        check(H5Adelete(object.id(), name.c_str()), Doing::writing, "replace the attribute", where);
    }
    const Handle attribute(check(H5Acreate2(object.id(), name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT),
                                 Doing::writing, "create the attribute", where),
                           close_attribute);
    check(H5Awrite(attribute.id(), type_in_memory, data), Doing::writing, "write the attribute", where);
}

Handle scalar_space(const std::string& where) {
    return {check(H5Screate(H5S_SCALAR), Doing::writing, "make a scalar", where), close_space};
}

Handle open_attribute(const Object& object, const std::string& name) {
    if (!object.has_attribute(name)) {
        throw input_error("no attribute '{}' - {} - the file is of another kind or version, or damaged", name,
                          object.where());
    }
    return {check(H5Aopen(object.id(), name.c_str(), H5P_DEFAULT), Doing::reading, "open the attribute",
                  named(object.where(), name)),
            close_attribute};
}

H5T_class_t class_of(const Handle& attribute, const std::string& where) {
    const Handle type(check(H5Aget_type(attribute.id()), Doing::reading, "read the attribute", where), close_type);
    return H5Tget_class(type.id());
}

/// One number, also from a one-element array (h5py and netCDF write either).
template <typename T>
T read_number(const Object& object, const std::string& name, hid_t type, bool integer) {
    const std::string where = named(object.where(), name);
    const Handle attribute = open_attribute(object, name);
    const H5T_class_t kind = class_of(attribute, where);
    const Handle space(check(H5Aget_space(attribute.id()), Doing::reading, "read the attribute", where), close_space);
    const bool fits = kind == H5T_INTEGER || (kind == H5T_FLOAT && !integer);
    if (!fits || H5Sget_simple_extent_npoints(space.id()) != 1) {
        throw input_error("the attribute is not one {} - {} - the file is of another kind or version, or damaged",
                          integer ? "integer" : "number", where);
    }
    T value{};
    check(H5Aread(attribute.id(), type, &value), Doing::reading, "read the attribute", where);
    return value;
}

}  // namespace

void Object::write_attribute(const std::string& name, std::int64_t value) {
    replace(*this, name, H5T_STD_I64LE, H5T_NATIVE_INT64, scalar_space(where()).id(), &value);
}

void Object::write_attribute(const std::string& name, double value) {
    replace(*this, name, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, scalar_space(where()).id(), &value);
}

void Object::write_attribute(const std::string& name, std::string_view value) {
    std::string text(value);
    if (text.size() > max_text_bytes) {
        const std::size_t all = text.size();
        std::size_t keep = max_text_bytes;
        while (keep > 0 && (static_cast<unsigned char>(text[keep]) & 0xC0U) == 0x80U) --keep;  // not inside a character
        text = text.substr(0, keep) + fmt::format("\n[cut: {} of {} bytes]", keep, all);
    }
    const Handle type = fixed_text_type(text.size());
    if (text.empty()) text.push_back('\0');
    replace(*this, name, type.id(), type.id(), scalar_space(where()).id(), text.data());
}

void Object::write_attribute(const std::string& name, std::span<const std::string> values) {
    std::size_t width = 1;
    for (const std::string& value : values) width = std::max(width, value.size());
    std::string table(width * std::max<std::size_t>(values.size(), 1), '\0');
    for (std::size_t i = 0; i < values.size(); ++i) values[i].copy(table.data() + i * width, width);
    const auto extent = static_cast<hsize_t>(values.size());
    const Handle space(check(H5Screate_simple(1, &extent, nullptr), Doing::writing, "make an attribute", where()),
                       close_space);
    const Handle type = fixed_text_type(width);
    replace(*this, name, type.id(), type.id(), space.id(), table.data());
}

void Object::write_attribute_as(ElementType type, const std::string& name, double value) {
    const hsize_t one = 1;
    const Handle space(check(H5Screate_simple(1, &one, nullptr), Doing::writing, "make an attribute", where()),
                       close_space);
    if (type == ElementType::f64 || type == ElementType::f32) {
        replace(*this, name, file_type(type), H5T_NATIVE_DOUBLE, space.id(), &value);
    } else {
        const auto integer = static_cast<std::int64_t>(value);
        replace(*this, name, file_type(type), H5T_NATIVE_INT64, space.id(), &integer);
    }
}

bool Object::has_attribute(const std::string& name) const {
    return check(H5Aexists(id(), name.c_str()), Doing::reading, "look for the attribute", named(where(), name)) > 0;
}

std::vector<std::string> Object::attribute_names() const {
    std::vector<std::string> names;
    hsize_t position = 0;
    const H5A_operator2_t collect = [](hid_t, const char* name, const H5A_info_t*, void* out) -> herr_t {
        static_cast<std::vector<std::string>*>(out)->emplace_back(name);
        return 0;
    };
    check(H5Aiterate2(id(), H5_INDEX_NAME, H5_ITER_INC, &position, collect, &names), Doing::reading,
          "list the attributes", where());
    return names;
}

bool Object::attribute_is_text(const std::string& name) const {
    return has_attribute(name) && class_of(open_attribute(*this, name), named(where(), name)) == H5T_STRING;
}

bool Object::attribute_is_integer(const std::string& name) const {
    return has_attribute(name) && class_of(open_attribute(*this, name), named(where(), name)) == H5T_INTEGER;
}

std::int64_t Object::read_int(const std::string& name) const {
    return read_number<std::int64_t>(*this, name, H5T_NATIVE_INT64, true);
}

double Object::read_double(const std::string& name) const {
    return read_number<double>(*this, name, H5T_NATIVE_DOUBLE, false);
}

std::string Object::read_text(const std::string& name) const {
    const std::string place = named(where(), name);
    const Handle attribute = open_attribute(*this, name);
    const Handle type(check(H5Aget_type(attribute.id()), Doing::reading, "read the attribute", place), close_type);
    const Handle space(check(H5Aget_space(attribute.id()), Doing::reading, "read the attribute", place), close_space);
    if (H5Tget_class(type.id()) != H5T_STRING || H5Sget_simple_extent_npoints(space.id()) > 1) {
        throw input_error("the attribute is not one text - {} - the file is of another kind or version, or damaged",
                          place);
    }
    if (H5Sget_simple_extent_npoints(space.id()) == 0) return {};  // h5py's Empty
    if (H5Tis_variable_str(type.id()) > 0) {
        char* text = nullptr;
        check(H5Aread(attribute.id(), type.id(), &text), Doing::reading, "read the attribute", place);
        std::string value = text == nullptr ? "" : text;
        if (text != nullptr) H5free_memory(text);
        return value;
    }
    std::string value(H5Tget_size(type.id()), '\0');
    check(H5Aread(attribute.id(), type.id(), value.data()), Doing::reading, "read the attribute", place);
    return trim_padding(value.data(), value.size());
}

}  // namespace hetlora::hdf5
