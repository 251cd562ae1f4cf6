// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Convert a document to PDF through port 2002: a client to copy from. Needs Debian's g++ and libreoffice-dev.
//
//     convert report.docx report.pdf
//
// The document and the PDF travel over the connection, each in one call, so the office needs no access to your files.
// tests/clients/build.py shows how to build it. At run time it needs the environment variable
// URE_BOOTSTRAP=vnd.sun.star.pathname:/usr/lib/libreoffice/program/fundamentalrc.

#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

#include <com/sun/star/beans/PropertyValue.hpp>
#include <com/sun/star/bridge/BridgeFactory.hpp>
#include <com/sun/star/bridge/UnoUrlResolver.hpp>
#include <com/sun/star/frame/Desktop.hpp>
#include <com/sun/star/frame/XStorable.hpp>
#include <com/sun/star/io/SequenceInputStream.hpp>
#include <com/sun/star/io/SequenceOutputStream.hpp>
#include <com/sun/star/lang/DisposedException.hpp>
#include <com/sun/star/lang/XServiceInfo.hpp>
#include <com/sun/star/util/XCloseable.hpp>
#include <cppuhelper/bootstrap.hxx>

using namespace com::sun::star;
using uno::Reference;

namespace
{
using Bytes = uno::Sequence<sal_Int8>;

// A session: a connection, and so an office of its own. Its end gives the office back.
class Session
{
public:
    Session()
        : local(cppu::defaultBootstrap_InitialComponentContext())
        , context(bridge::UnoUrlResolver::create(local)->resolve(
                      "uno:socket,host=localhost,port=2002;urp;StarOffice.ComponentContext"),
                  uno::UNO_QUERY_THROW)
    {
    }
    Session(const Session&) = delete;
    ~Session()
    {
        context.clear();
        for (const auto& bridge : bridge::BridgeFactory::create(local)->getExistingBridges())
            Reference<lang::XComponent>(bridge, uno::UNO_QUERY_THROW)->dispose();
    }

private:
    const Reference<uno::XComponentContext> local;

public:
    Reference<uno::XComponentContext> context;
};

beans::PropertyValue property(const char* name, const uno::Any& value)
{
    return { rtl::OUString::createFromAscii(name), -1, value, beans::PropertyState_DIRECT_VALUE };
}

rtl::OUString filter(const Reference<uno::XInterface>& document)
{
    const Reference<lang::XServiceInfo> kind(document, uno::UNO_QUERY_THROW);
    if (kind->supportsService("com.sun.star.sheet.SpreadsheetDocument"))
        return "calc_pdf_Export";
    if (kind->supportsService("com.sun.star.presentation.PresentationDocument"))
        return "impress_pdf_Export";
    return "writer_pdf_Export";
}

Bytes convert(const Reference<uno::XComponentContext>& context, const Bytes& data)
{
    // Both streams are the office's own: all bytes go in one call, where a stream of ours would get thousands.
    const Reference<io::XInputStream> in(io::SequenceInputStream::createStreamFromSequence(context, data),
                                         uno::UNO_QUERY_THROW);
    const beans::PropertyValue load[] = { property("Hidden", uno::Any(true)), property("InputStream", uno::Any(in)) };
    const Reference<lang::XComponent> document
        = frame::Desktop::create(context)->loadComponentFromURL("private:stream", "_blank", 0, { load, 2 });
    if (!document.is())
        throw uno::RuntimeException("LibreOffice cannot load this document");
    const Reference<io::XSequenceOutputStream> out = io::SequenceOutputStream::create(context);
    const beans::PropertyValue store[]
        = { property("FilterName", uno::Any(filter(document))),
            property("OutputStream", uno::Any(Reference<io::XOutputStream>(out, uno::UNO_QUERY_THROW))) };
    Reference<frame::XStorable>(document, uno::UNO_QUERY_THROW)->storeToURL("private:stream", { store, 2 });
    const Bytes pdf = out->getWrittenBytes();
    Reference<util::XCloseable>(document, uno::UNO_QUERY_THROW)->close(true);
    return pdf;
}

Bytes convert_in_a_session(const Bytes& data)
{
    const Session session;
    return convert(session.context, data);
}
}

int main(int, char** arguments)
{
    std::ifstream source(arguments[1], std::ios::binary);
    const std::string read((std::istreambuf_iterator<char>(source)), std::istreambuf_iterator<char>());
    const Bytes data(reinterpret_cast<const sal_Int8*>(read.data()), static_cast<sal_Int32>(read.size()));
    try
    {
        Bytes pdf;
        try
        {
            pdf = convert_in_a_session(data);
        }
        catch (const lang::DisposedException&) // the office is lost: another one does it
        {
            pdf = convert_in_a_session(data);
        }
        std::ofstream(arguments[2], std::ios::binary)
            .write(reinterpret_cast<const char*>(pdf.getConstArray()), pdf.getLength());
    }
    catch (const uno::Exception& error)
    {
        std::cerr << error.Message << std::endl;
        return 1;
    }
    return 0;
}
