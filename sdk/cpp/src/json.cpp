#include "json.h"

#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <locale>
#include <sstream>

#include "boxwright/detector.hpp"

namespace boxwright::json {

namespace {

constexpr int kMostLevels = 64;

[[noreturn]] void fail(const std::string& what, const std::string& expected) {
    throw Error("manifest" + what + ": expected " + expected + ", got another; export the model again");
}

// The number at the beginning of a text, and how many characters it has; 0 where there is none. Not strtod, which reads
// a comma where the locale has one.
size_t read_number(const char* first, const char* last, double& number) {
#if defined(__cpp_lib_to_chars) && !defined(BOXWRIGHT_NUMBERS_BY_STREAM)
    const auto [end, error] = std::from_chars(first, last, number);
    return error == std::errc() ? static_cast<size_t>(end - first) : 0;
#else
    // GCC before 11, which JetPack 5 has, reads whole numbers alone with from_chars.
    const char* end = first;
    while (end != last && std::strchr("+-.0123456789Ee", *end) != nullptr && *end != '\0') ++end;
    std::istringstream stream(std::string(first, end));
    stream.imbue(std::locale::classic());
    return stream >> number && stream.peek() == std::istringstream::traits_type::eof() ? static_cast<size_t>(end - first) : 0;
#endif
}

class Parser {
   public:
    explicit Parser(const std::string& text) : text_(text) {}

    Value document() {
        Value value = parse_value(0);
        skip_spaces();
        if (position_ != text_.size()) malformed();
        return value;
    }

   private:
    [[noreturn]] void malformed() const { fail(" at byte " + std::to_string(position_), "a JSON document"); }

    void skip_spaces() {
        while (position_ < text_.size() && std::string(" \t\r\n").find(text_[position_]) != std::string::npos) ++position_;
    }

    char peek() const { return position_ < text_.size() ? text_[position_] : '\0'; }

    void expect(const std::string& token) {
        if (text_.compare(position_, token.size(), token) != 0) malformed();
        position_ += token.size();
    }

    Value parse_value(int level) {
        if (level > kMostLevels) malformed();
        skip_spaces();
        Value value;
        switch (peek()) {
            case '{': return parse_object(level);
            case '[': return parse_list(level);
            case '"':
                value.kind = Value::Kind::text;
                value.text = parse_text();
                return value;
            case 't': expect("true"); value.boolean = true; value.kind = Value::Kind::boolean; return value;
            case 'f': expect("false"); value.kind = Value::Kind::boolean; return value;
            case 'n': expect("null"); return value;
            default: return parse_number();
        }
    }

    Value parse_object(int level) {
        Value value;
        value.kind = Value::Kind::object;
        expect("{");
        skip_spaces();
        while (peek() != '}') {
            if (!value.members.empty()) expect(",");
            skip_spaces();
            std::string key = parse_text();
            if (value.find(key) != nullptr) malformed();
            skip_spaces();
            expect(":");
            value.members.emplace_back(std::move(key), parse_value(level + 1));
            skip_spaces();
        }
        expect("}");
        return value;
    }

    Value parse_list(int level) {
        Value value;
        value.kind = Value::Kind::list;
        expect("[");
        skip_spaces();
        while (peek() != ']') {
            if (!value.items.empty()) expect(",");
            value.items.push_back(parse_value(level + 1));
            skip_spaces();
        }
        expect("]");
        return value;
    }

    Value parse_number() {
        const char first = peek();
        if (first != '-' && (first < '0' || first > '9')) malformed();
        Value value;
        value.kind = Value::Kind::number;
        const size_t length = read_number(text_.data() + position_, text_.data() + text_.size(), value.number);
        if (length == 0) malformed();
        position_ += length;
        return value;
    }

    std::string parse_text() {
        expect("\"");
        std::string result;
        while (peek() != '"') {
            if (position_ >= text_.size() || static_cast<unsigned char>(peek()) < 0x20) malformed();
            if (peek() != '\\') {
                result += text_[position_++];
                continue;
            }
            ++position_;
            const size_t escape = std::string("\"\\/bfnrt").find(peek());
            if (peek() == 'u') {
                ++position_;
                append_utf8(result, parse_code_point());
            } else if (escape != std::string::npos && peek() != '\0') {
                result += "\"\\/\b\f\n\r\t"[escape];
                ++position_;
            } else {
                malformed();
            }
        }
        expect("\"");
        return result;
    }

    uint32_t parse_four_digits() {
        uint32_t code = 0;
        if (position_ + 4 > text_.size()) malformed();
        const auto [end, error] = std::from_chars(text_.data() + position_, text_.data() + position_ + 4, code, 16);
        if (error != std::errc() || end != text_.data() + position_ + 4) malformed();
        position_ += 4;
        return code;
    }

    uint32_t parse_code_point() {
        const uint32_t high = parse_four_digits();
        if (high < 0xD800 || high > 0xDFFF) return high;
        if (high > 0xDBFF) malformed();
        expect("\\u");
        const uint32_t low = parse_four_digits();
        if (low < 0xDC00 || low > 0xDFFF) malformed();
        return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
    }

    static void append_utf8(std::string& text, uint32_t code) {
        if (code < 0x80) {
            text += static_cast<char>(code);
            return;
        }
        const int num_following = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
        const uint32_t lead = num_following == 1 ? 0xC0 : num_following == 2 ? 0xE0 : 0xF0;
        text += static_cast<char>(lead | (code >> (6 * num_following)));
        for (int i = num_following - 1; i >= 0; --i) text += static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3F));
    }

    const std::string& text_;
    size_t position_ = 0;
};

}  // namespace

Value parse(const std::string& text) { return Parser(text).document(); }

const Value* Value::find(const std::string& key) const {
    for (const auto& [name, value] : members) {
        if (name == key) return &value;
    }
    return nullptr;
}

const Value& Value::at(const std::string& key) const {
    const Value* value = find(key);
    if (value == nullptr) fail("", "the key " + key);
    return *value;
}

double Value::number_at(const std::string& key) const {
    const Value& value = at(key);
    if (value.kind != Kind::number) fail("." + key, "a number");
    return value.number;
}

long long Value::integer_at(const std::string& key) const {
    const double value = number_at(key);
    if (!(value >= -9e15 && value <= 9e15) || value != static_cast<double>(static_cast<long long>(value))) {
        fail("." + key, "a whole number");
    }
    return static_cast<long long>(value);
}

bool Value::boolean_at(const std::string& key) const {
    const Value& value = at(key);
    if (value.kind != Kind::boolean) fail("." + key, "true or false");
    return value.boolean;
}

const std::string& Value::text_at(const std::string& key) const {
    const Value& value = at(key);
    if (value.kind != Kind::text) fail("." + key, "a text");
    return value.text;
}

const std::vector<Value>& Value::list_at(const std::string& key) const {
    const Value& value = at(key);
    if (value.kind != Kind::list) fail("." + key, "a list");
    return value.items;
}

std::vector<double> Value::numbers_at(const std::string& key, size_t count) const {
    std::vector<double> numbers;
    for (const Value& item : list_at(key)) {
        if (item.kind != Kind::number) fail("." + key, "numbers");
        numbers.push_back(item.number);
    }
    if (numbers.size() != count) fail("." + key, std::to_string(count) + " numbers");
    return numbers;
}

void Value::require_only(const std::string& what, std::initializer_list<const char*> keys) const {
    if (kind != Kind::object) fail("." + what, "an object");
    for (const auto& [name, value] : members) {
        bool known = false;
        for (const char* key : keys) known = known || name == key;
        if (!known) throw Error("manifest." + what + ": expected only known keys, got " + name + "; update boxwright");
    }
}

}  // namespace boxwright::json
