// SPDX-License-Identifier: LGPL-2.1-or-later

import com.sun.star.beans.PropertyValue;
import com.sun.star.bridge.XUnoUrlResolver;
import com.sun.star.comp.helper.Bootstrap;
import com.sun.star.frame.XComponentLoader;
import com.sun.star.frame.XStorable;
import com.sun.star.io.XOutputStream;
import com.sun.star.lang.XComponent;
import com.sun.star.lang.XMultiComponentFactory;
import com.sun.star.lang.XServiceInfo;
import com.sun.star.uno.UnoRuntime;
import com.sun.star.uno.XComponentContext;
import com.sun.star.util.XCloseable;
import java.io.BufferedOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;

/**
 * Converts a document to PDF through an office's UNO port, with LibreOffice's own Java library.
 *
 * <p>{@code Convert HOST PORT SOURCE TARGET.pdf}. The office loads SOURCE by its path. The PDF comes back over the
 * connection, to a stream of the client. Each step writes a line of JSON, as in convert.py. The connection is never
 * disposed: {@code System.exit} ends the library's threads, as in most programs.
 */
public final class Convert {
    private Convert() {}

    /** Writes the bytes from the office to a file. */
    private static final class FileOutput implements XOutputStream {
        private final OutputStream file;

        FileOutput(Path path) throws IOException {
            file = new BufferedOutputStream(Files.newOutputStream(path));
        }

        @Override
        public void writeBytes(byte[] data) throws com.sun.star.io.IOException {
            run(() -> file.write(data));
        }

        @Override
        public void flush() throws com.sun.star.io.IOException {
            run(file::flush);
        }

        @Override
        public void closeOutput() throws com.sun.star.io.IOException {
            run(file::close);
        }

        /** An action on a file that may fail. */
        private interface Action {
            void run() throws IOException;
        }

        private static void run(Action action) throws com.sun.star.io.IOException {
            try {
                action.run();
            } catch (IOException error) {
                throw new com.sun.star.io.IOException(error.getMessage());
            }
        }
    }

    private static PropertyValue property(String name, Object value) {
        PropertyValue property = new PropertyValue();
        property.Name = name;
        property.Value = value;
        return property;
    }

    private static XComponentContext connect(String host, String port) throws Exception {
        XComponentContext local = Bootstrap.createInitialComponentContext(null);
        Object service =
                local.getServiceManager().createInstanceWithContext("com.sun.star.bridge.UnoUrlResolver", local);
        XUnoUrlResolver resolver = UnoRuntime.queryInterface(XUnoUrlResolver.class, service);
        String url = "uno:socket,host=" + host + ",port=" + port + ";urp;StarOffice.ComponentContext";
        return UnoRuntime.queryInterface(XComponentContext.class, resolver.resolve(url));
    }

    private static void convert(XComponentContext context, Path source, Path target) throws Exception {
        XMultiComponentFactory factory = context.getServiceManager();
        Object desktop = factory.createInstanceWithContext("com.sun.star.frame.Desktop", context);
        XComponentLoader loader = UnoRuntime.queryInterface(XComponentLoader.class, desktop);
        PropertyValue[] hidden = {property("Hidden", true)};
        step("loading");
        XComponent document = loader.loadComponentFromURL(source.toUri().toString(), "_blank", 0, hidden);
        if (document == null) {
            throw new IOException("the office returned no document for " + source);
        }
        step("loaded");
        PropertyValue[] pdf = {
            property("FilterName", filter(document)), property("OutputStream", new FileOutput(target))
        };
        UnoRuntime.queryInterface(XStorable.class, document).storeToURL("private:stream", pdf);
        step("stored");
        UnoRuntime.queryInterface(XCloseable.class, document).close(true);
        step("closed");
    }

    private static String filter(XComponent document) {
        XServiceInfo kind = UnoRuntime.queryInterface(XServiceInfo.class, document);
        if (kind.supportsService("com.sun.star.sheet.SpreadsheetDocument")) {
            return "calc_pdf_Export";
        }
        if (kind.supportsService("com.sun.star.presentation.PresentationDocument")) {
            return "impress_pdf_Export";
        }
        return "writer_pdf_Export";
    }

    private static void step(String name) {
        System.out.println("{\"step\": \"" + name + "\"}");
    }

    /** Connects and converts. On failure, writes the exception to standard error and exits with 1. */
    public static void main(String[] arguments) {
        try {
            XComponentContext context = connect(arguments[0], arguments[1]);
            step("connected");
            convert(context, Paths.get(arguments[2]).toAbsolutePath(), Paths.get(arguments[3]));
        } catch (Exception error) {
            System.err.println(error);
            System.exit(1);
        }
        System.exit(0);
    }
}
